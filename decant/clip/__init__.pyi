from .operation import clip as clip
from .params import ClipParams as ClipParams
