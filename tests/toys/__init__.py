"""One part of each kind, written as somebody would in a package of his own: whatever memo does with its own parts
has to work with these"""
import importlib, pkgutil
for m in pkgutil.iter_modules(__path__): importlib.import_module(f'{__name__}.{m.name}')
