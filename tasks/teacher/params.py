"""The section `teacher` of params.yaml."""

from __future__ import annotations

from tasks.fit import Training
from tasks.models import Architecture
from tasks.params import Section


class TeacherParams(Section):
    """The network and how it is trained."""

    architecture: Architecture
    training: Training
