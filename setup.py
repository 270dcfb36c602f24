"experiments/ lies at the top of the repository and goes into the package, which setup.cfg cannot say"
import shutil
from pathlib import Path
from setuptools import setup
from setuptools.command.build_py import build_py

class BuildPy(build_py):
    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)   # what an earlier build left there would go into the wheel
        super().run()
        if self.editable_mode: return                       # memo finds the folder beside itself
        for p in Path('experiments').rglob('*'):
            if p.suffix not in ('.yaml','.yml','.md','.csv','.py') or p.parts[1]=='runs': continue
            to = Path(self.build_lib, 'memo', p)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(p, to)

setup(cmdclass=dict(build_py=BuildPy))
