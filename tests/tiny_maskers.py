"""Tiny random models of the classes that maskers load, saved as transformers saves them, with their processors."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf

from diffstyler.backbones.source import EMBEDDED

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_tiny(name: str, folder: Path) -> Path:
    """One of sam, sam2, clipseg, owlv2, dino."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = _MADE[name]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _clip_tokenizer() -> hf.CLIPTokenizer:
    return hf.CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")


def _text(tokenizer: hf.CLIPTokenizer) -> dict:
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {"vocab_size": len(tokenizer), **TOWER, **ends, "pad_token_id": tokenizer.pad_token_id}


def _sam() -> tuple:
    vision = {**TOWER, "output_channels": 32, "image_size": 64, "patch_size": 8, "num_pos_feats": 16, "mlp_dim": 64}
    config = hf.SamConfig(
        vision_config={**vision, "window_size": 4, "global_attn_indexes": (1,), "initializer_range": 0.02},
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 8},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
    )
    sides = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    sides |= {"mask_size": {"longest_edge": 16}, "mask_pad_size": {"height": 16, "width": 16}}
    return hf.SamModel(config), hf.SamProcessor(hf.SamImageProcessor(**sides))


def _sam2() -> tuple:
    backbone = {
        "hidden_size": 16,
        "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [16, 32, 48, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [8, 4, 4, 2],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    config = hf.Sam2Config(
        vision_config={
            "backbone_config": {"model_type": "sam2_hiera_det_model", **backbone},
            "backbone_channel_list": [64, 48, 32, 16],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 32,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
    )
    sides = {"size": {"height": 64, "width": 64}, "mask_size": {"height": 16, "width": 16}}
    return hf.Sam2Model(config), hf.Sam2Processor(hf.Sam2ImageProcessor(**sides))


def _clipseg() -> tuple:
    tokenizer = _clip_tokenizer()
    config = hf.CLIPSegConfig(
        text_config=_text(tokenizer),
        vision_config={**TOWER, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    images = hf.ViTImageProcessor(size={"height": 32, "width": 32})
    return hf.CLIPSegForImageSegmentation(config), hf.CLIPSegProcessor(images, tokenizer)


def _owlv2() -> tuple:
    tokenizer = _clip_tokenizer()
    config = hf.Owlv2Config(
        text_config={**_text(tokenizer), "max_position_embeddings": 16},
        vision_config={**TOWER, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    images = hf.Owlv2ImageProcessor(size={"height": 32, "width": 32})
    tokenizer.model_max_length = 16
    return hf.Owlv2ForObjectDetection(config), hf.Owlv2Processor(images, tokenizer)


def _dino() -> tuple:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "a", "cat", "dog", "red", "cup"]
    tokenizer = hf.BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    backbone = hf.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = hf.GroundingDinoConfig(
        backbone_config=backbone,
        text_config=hf.BertConfig(vocab_size=len(words), **TOWER),
        num_queries=12,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        d_model=32,
    )
    images = hf.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    return hf.GroundingDinoForObjectDetection(config), hf.GroundingDinoProcessor(images, tokenizer)


_MADE = {"sam": _sam, "sam2": _sam2, "clipseg": _clipseg, "owlv2": _owlv2, "dino": _dino}
