from . import exchange   # gives `ClassBank` its `export_tail`, `to_json`...: they are there with any bank
