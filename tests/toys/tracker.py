"A tracker"
from memo.core import Natural
from memo.registry import register
from memo.training.tracking import Tracker

@register('tracker', 'toy_lines')
class MyTracker(Tracker):
    "A line for each epoch"
    def __init__(self,
        digits:Natural=3    # Behind the point
    ):
        super().__init__()
        self.digits = digits
    def open(self, name, config, folder, id=None):
        self.run_ = folder/'lines.txt'
        was = self.run_.read_text().splitlines() if id and self.run_.exists() else [name]
        self.run_.write_text(''.join(f'{o}\n' for o in was[:1+self.last_step]))
        return 'lines.txt'
    def write(self, values, step):
        with self.run_.open('a') as f: print(step, *(f'{k}={v:.{self.digits}f}' for k,v in values.items()), file=f)
