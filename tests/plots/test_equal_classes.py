"Pictures of sets whose classes are alike, and of banks whose rows have unit length"
import pandas as pd, pytest, torch
from memo.banks.key_value import CachedBank, TrainableBank
from memo.banks.slots import SlotBank
from memo.plots.banks import plot_bank
from memo.plots.training import plot_counts, plot_history

@pytest.mark.parametrize('counts,many,few,n', [([50]*4,100,20,0), ([113,112,104],0,0,0), ([500,50,5],100,20,3),
                                               ([500,50,50],100,20,2)])
def test_a_legend_where_classes_differ(counts, many, few, n):
    "Of a balanced set it would say that all are many"
    got = plot_counts(torch.tensor(counts), many, few).axes[0].get_legend()
    assert (0 if got is None else len(got.get_texts()))==n

@pytest.mark.parametrize('bank,label', [(CachedBank(20, 3, dim=4),'times recalled in training'),
    (TrainableBank(20, 3, dim=4),'times recalled in training'), (SlotBank(20, policy='fifo'),'length of the feature')])
def test_rows_of_a_bank(bank, label):
    x,y = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)),torch.arange(30)%3
    for i in range(3): bank.write(x[:10+10*i], y[:10+10*i], item=torch.arange(10+10*i))
    fig = plot_bank(bank, ['a','b','c'])
    assert [a.get_xlabel() for a in fig.axes[1:]]==['age (writes since last touched)',label]
    assert sum(p.get_height() for p in fig.axes[2].patches)==len(bank)

def test_long_names_stay_on_the_page():
    df = pd.DataFrame(dict(epoch=[0,1], memory_fill=[.5,1.], memory_turnover=[0.,.1], memory_network_usage=[0.,1.]))
    fig = plot_history(df)
    fig.canvas.draw()
    box,page = fig.axes[0].get_legend().get_window_extent(),fig.bbox
    assert box.x1<=page.x1+1
