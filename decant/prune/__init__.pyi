from .operation import prune as prune
from .params import PruneParams as PruneParams
