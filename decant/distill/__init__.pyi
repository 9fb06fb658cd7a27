from .operation import distill as distill
from .params import DistillParams as DistillParams
