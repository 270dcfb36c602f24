"What a user's mistake is told with"
import pytest
from memo.core import MemoError

def err(f, *args, **kwargs):
    "The one line of the error of `f`"
    with pytest.raises(MemoError) as e: f(*args, **kwargs)
    assert '\n' not in str(e.value)
    return str(e.value)
