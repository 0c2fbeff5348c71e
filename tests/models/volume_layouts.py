"""Names and shapes of published weight files of volumes and of newer ViTs, written down by hand."""

from __future__ import annotations

from published_layouts import Layout, batch_norm, lvm_med


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Layout:
    layout: Layout = {f"{name}.weight": (outputs, inputs)}
    return layout | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, width: int) -> Layout:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def prefixed(prefix: str, layout: Layout) -> Layout:
    return {f"{prefix}{name}": shape for name, shape in layout.items()}


def medsam() -> Layout:
    """`medsam_vit_b.pth`: all of SAM; of the decoder a tensor."""
    encoder = lvm_med() | {"pos_embed": (1, 64, 64, 768)}
    return prefixed("image_encoder.", encoder) | {"mask_decoder.iou_token.weight": (1, 256)}


def sam_med2d() -> Layout:
    """`sam-med2d_b.pth`: 256 px, so 31 offsets in the global blocks, and adapters."""
    layout = lvm_med() | {"pos_embed": (1, 16, 16, 768)}
    for block in range(12):
        name = f"blocks.{block}"
        if block in (2, 5, 8, 11):
            layout |= {f"{name}.attn.rel_pos_{axis}": (31, 64) for axis in "hw"}
        layout |= {
            f"{name}.Adapter.channel.0.weight": (192, 768),
            f"{name}.Adapter.channel.2.weight": (768, 192),
            f"{name}.Adapter.spatial.0.weight": (768, 768, 3, 3),
            f"{name}.Adapter.spatial.2.weight": (768, 768, 4, 4),
            **norm(f"{name}.Adapter.norm", 768),
        }
    return prefixed("image_encoder.", layout)


def vit(width: int, depth: int, tokens: int) -> Layout:
    """timm's plain ViT with patches of 16."""
    layout: Layout = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        **norm("norm", width),
    }
    for block in range(depth):
        name = f"blocks.{block}"
        layout |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
        layout |= linear(f"{name}.attn.qkv", width, 3 * width)
        layout |= linear(f"{name}.attn.proj", width, width)
        layout |= linear(f"{name}.mlp.fc1", width, 4 * width)
        layout |= linear(f"{name}.mlp.fc2", 4 * width, width)
    return layout


def retfound() -> Layout:
    """`RETFound_mae_natureCFP.pth`: the autoencoder's encoder, and of its decoder two tensors."""
    decoder: Layout = {"mask_token": (1, 1, 512), "decoder_pos_embed": (1, 197, 512)}
    return vit(1024, 24, 197) | decoder


def biomedclip() -> Layout:
    """`open_clip_pytorch_model.bin`: the image tower, and of the text's a tensor."""
    head: Layout = {"visual.head.proj.weight": (512, 768), "logit_scale": ()}
    return prefixed("visual.trunk.", vit(768, 12, 197)) | head


def rad_dino() -> Layout:
    """`model.safetensors` of Hugging Face's Dinov2Model, ViT-B/14 at 518 px."""
    layout: Layout = {
        "embeddings.cls_token": (1, 1, 768),
        "embeddings.mask_token": (1, 768),
        "embeddings.position_embeddings": (1, 1370, 768),
        "embeddings.patch_embeddings.projection.weight": (768, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (768,),
        **norm("layernorm", 768),
    }
    for number in range(12):
        name = f"encoder.layer.{number}"
        layout |= norm(f"{name}.norm1", 768) | norm(f"{name}.norm2", 768)
        for part in ("query", "key", "value"):
            layout |= linear(f"{name}.attention.attention.{part}", 768, 768)
        layout |= linear(f"{name}.attention.output.dense", 768, 768)
        layout |= {f"{name}.layer_scale{each}.lambda1": (768,) for each in (1, 2)}
        layout |= linear(f"{name}.mlp.fc1", 768, 3072) | linear(f"{name}.mlp.fc2", 3072, 768)
    return layout


def ct_fm() -> Layout:
    """`model.safetensors`: MONAI's SegResEncoder; 161 tensors with the counters."""
    layout: Layout = {"conv_init.weight": (32, 1, 3, 3, 3)}
    for level, blocks in enumerate((1, 2, 2, 4, 4)):
        width = 32 * 2**level
        for block in range(blocks):
            name = f"layers.{level}.blocks.{block}"
            for each in (1, 2):
                layout |= batch_norm(f"{name}.norm{each}", width)
                layout[f"{name}.conv{each}.weight"] = (width, width, 3, 3, 3)
        if level < 4:
            layout[f"layers.{level}.downsample.weight"] = (2 * width, width, 3, 3, 3)
    return layout


def suprem_unet() -> Layout:
    """`supervised_suprem_unet_2100.pth`, below `net`; of the decoder a tensor."""
    layout: Layout = {"up_tr256.up_conv.weight": (512, 512, 2, 2, 2)}
    inputs = 1
    for name, middle, outputs in (
        ("down_tr64", 32, 64),
        ("down_tr128", 64, 128),
        ("down_tr256", 128, 256),
        ("down_tr512", 256, 512),
    ):
        for place, (into, out) in enumerate(((inputs, middle), (middle, outputs))):
            convolution = f"{name}.ops.{place}"
            layout[f"{convolution}.conv1.weight"] = (out, into, 3, 3, 3)
            layout[f"{convolution}.conv1.bias"] = (out,)
            layout |= batch_norm(f"{convolution}.bn1", out)
        inputs = outputs
    rest: Layout = {"module.organ_embedding": (32, 512)}
    return prefixed("module.backbone.", layout) | rest


def suprem_segresnet() -> Layout:
    """`supervised_suprem_segresnet_2100.pth`, below `net`; of the decoder a tensor."""
    layout: Layout = {
        "convInit.conv.weight": (16, 1, 3, 3, 3),
        "conv_final.2.conv.weight": (32, 16, 1, 1, 1),
    }
    for level, blocks in enumerate((1, 2, 2, 4)):
        width = 16 * 2**level
        if level:
            layout[f"down_layers.{level}.0.conv.weight"] = (width, width // 2, 3, 3, 3)
        for block in range(1, blocks + 1):
            name = f"down_layers.{level}.{block}"
            for each in (1, 2):
                layout |= norm(f"{name}.norm{each}", width)
                layout[f"{name}.conv{each}.conv.weight"] = (width, width, 3, 3, 3)
    return prefixed("module.", layout)


def suprem_swinunetr() -> Layout:
    """`supervised_suprem_swinunetr_2100.pth`, below `net`; of the decoder a tensor."""
    layout: Layout = {
        "swinViT.patch_embed.proj.weight": (48, 1, 2, 2, 2),
        "swinViT.patch_embed.proj.bias": (48,),
        "encoder1.layer.conv1.conv.weight": (48, 1, 3, 3, 3),
    }
    for stage, heads in enumerate((3, 6, 12, 24)):
        width = 48 * 2**stage
        for block in (0, 1):
            name = f"swinViT.layers{stage + 1}.0.blocks.{block}"
            layout |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
            layout[f"{name}.attn.relative_position_bias_table"] = (13**3, heads)
            layout[f"{name}.attn.relative_position_index"] = (343, 343)
            layout |= linear(f"{name}.attn.qkv", width, 3 * width)
            layout |= linear(f"{name}.attn.proj", width, width)
            layout |= linear(f"{name}.mlp.linear1", width, 4 * width)
            layout |= linear(f"{name}.mlp.linear2", 4 * width, width)
        name = f"swinViT.layers{stage + 1}.0.downsample"
        layout |= linear(f"{name}.reduction", 8 * width, 2 * width, bias=False)
        layout |= norm(f"{name}.norm", 8 * width)
    return prefixed("module.backbone.", layout)


def merlin() -> Layout:
    """`i3_resnet_clinical_longformer_best_clip_….pt`; of heads and text two tensors."""
    layout: Layout = {"conv1.weight": (64, 3, 3, 7, 7), **batch_norm("bn1", 64)}
    inputs = 64
    for stage, blocks in enumerate((3, 8, 36, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            layout |= {
                f"{name}.conv1.weight": (width, inputs, 1, 1, 1),
                f"{name}.conv2.weight": (width, width, 3, 3, 3),
                f"{name}.conv3.weight": (4 * width, width, 1, 1, 1),
                **batch_norm(f"{name}.bn1", width),
                **batch_norm(f"{name}.bn2", width),
                **batch_norm(f"{name}.bn3", 4 * width),
            }
            if block == 0:
                layout[f"{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1, 1)
                layout |= batch_norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    layout["contrastive_head.weight"] = (512, 2048, 1, 1, 1)
    rest: Layout = {"encode_text.linear_layer.weight": (512, 768)}
    return prefixed("encode_image.i3_resnet.", layout) | rest


def sam_med3d() -> Layout:
    """`sam_med3d_turbo.pth`, below `model_state_dict`; of the decoder a tensor."""
    layout: Layout = {
        "pos_embed": (1, 8, 8, 8, 768),
        "patch_embed.proj.weight": (768, 1, 16, 16, 16),
        "patch_embed.proj.bias": (768,),
        "neck.0.weight": (384, 768, 1, 1, 1),
        "neck.2.weight": (384, 384, 3, 3, 3),
        **norm("neck.1", 384),
        **norm("neck.3", 384),
    }
    for block in range(12):
        name = f"blocks.{block}"
        offsets = 15 if block in (2, 5, 8, 11) else 27
        layout |= norm(f"{name}.norm1", 768) | norm(f"{name}.norm2", 768)
        layout |= {f"{name}.attn.rel_pos_{axis}": (offsets, 64) for axis in "dhw"}
        layout |= linear(f"{name}.attn.qkv", 768, 2304) | linear(f"{name}.attn.proj", 768, 768)
        layout |= linear(f"{name}.mlp.lin1", 768, 3072) | linear(f"{name}.mlp.lin2", 3072, 768)
    rest: Layout = {"mask_decoder.iou_token.weight": (1, 384)}
    return prefixed("image_encoder.", layout) | rest
