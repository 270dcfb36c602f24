from . import compressed,exchange,index   # give banks `compress`, `index`, `export_tail`...: they are there with any bank
