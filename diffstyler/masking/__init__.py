"""Mask prompts -> masks: one file for each way of finding things in a picture."""

from diffstyler.masking.attention import AttentionMasker
from diffstyler.masking.base import Masker, NothingFoundError
from diffstyler.masking.clipseg import CLIPSegMasker
from diffstyler.masking.fastsam import FastSAMMasker
from diffstyler.masking.find import check_masks, check_prompt, find_masks, mask_problems
from diffstyler.masking.grounded_sam import GroundedSAMMasker
from diffstyler.masking.sam import SAMMasker
