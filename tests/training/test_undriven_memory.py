"What is said where the model has memories and no callback drives them"
import pytest
from fastai.vision.all import CrossEntropyLossFlat, Learner
from memo.all import MemoError, digits, hopfield_vit

def test_memories_without_a_callback_are_named():
    net = hopfield_vit('vit_tiny_patch16_224', 10, size=5, c_in=1, img_size=16, patch_size=8, depth=2, embed_dim=48,
                       num_heads=3)
    learn = Learner(digits(n=50), net, CrossEntropyLossFlat())
    with pytest.raises(MemoError, match=r'hopfield_0, hopfield_1\): put MemoryCallback\(\)'): learn.recall()
