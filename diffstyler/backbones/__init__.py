"""Model families behind one interface."""

from diffstyler.backbones.attention import AttentionBackend, AutoAttention, SDPAttention, XFormersAttention
from diffstyler.backbones.base import NETWORK, Backbone, InjectionSites
from diffstyler.backbones.prediction import NoisePrediction, Prediction, VelocityPrediction
from diffstyler.backbones.stable_diffusion import StableDiffusion
from diffstyler.backbones.stable_diffusion_xl import StableDiffusionXL
