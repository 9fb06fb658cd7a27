from .operation import quantize as quantize
from .params import QuantizeParams as QuantizeParams
