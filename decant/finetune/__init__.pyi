from .operation import finetune as finetune
from .params import FinetuneParams as FinetuneParams
