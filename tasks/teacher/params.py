"""The section `teacher` of params.yaml."""

from __future__ import annotations

from tasks.models import Architecture
from tasks.params import Section
from tasks.training import Training


class TeacherParams(Section):
    """The network and how it is trained."""

    architecture: Architecture
    training: Training
