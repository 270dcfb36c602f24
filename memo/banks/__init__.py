from . import compressed,edits,exchange,index   # give banks `compress`, `forget`, `index`, `export_tail`...: they are there with any bank
