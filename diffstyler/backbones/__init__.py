"""Model families behind one interface."""

from diffstyler.backbones.base import Backbone, InjectionSites, Schedule
from diffstyler.backbones.stable_diffusion import StableDiffusion

__all__ = ["Backbone", "InjectionSites", "Schedule", "StableDiffusion"]
