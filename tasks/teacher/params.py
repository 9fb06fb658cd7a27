"""The section `teacher` of params.yaml."""

from __future__ import annotations

from decant.networks.architectures import Architecture
from decant.schema import Section
from decant.training.recipe import Training


class TeacherParams(Section):
    """The network and how it is trained."""

    architecture: Architecture
    training: Training
