"What Sphinx reads; nbs/site/build.py has made the pages"
import memo

project,author,copyright = 'memo','the memo authors','the memo authors'
version = release = memo.__version__
extensions = ['myst_nb','sphinx_copybutton','sphinx_design']
exclude_patterns = ['jupyter_execute','**.ipynb_checkpoints']
nb_execution_mode = 'off'           # outputs are those that the notebooks were saved with
nb_output_stderr = 'remove'
nb_render_text_lexer = 'text'
myst_enable_extensions = ['dollarmath','colon_fence','html_image']
myst_heading_anchors = 4
myst_all_links_external = True      # build.py has made them
suppress_warnings = ['myst.header','misc.highlighting_failure','mystnb.unknown_mime_type']
html_theme,html_title = 'furo',f'memo {version}'
html_static_path,html_css_files = ['_static'],['memo.css']
html_extra_path = ['_extra']
html_show_sourcelink,html_copy_source = False,False
pygments_style,pygments_dark_style = 'default','monokai'

# formulas as MathML, which browsers show by themselves: no script has to be fetched
html_math_renderer = 'mathml'

def math(display):
    def visit(self, node):
        from docutils import nodes
        from latex2mathml.converter import convert
        self.body.append(convert(node.astext(), 'block' if display else 'inline'))
        raise nodes.SkipNode
    return visit,None

def setup(app): app.add_html_math_renderer('mathml', math(False), math(True))
