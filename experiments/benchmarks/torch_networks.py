"""The published networks in PyTorch, under their published parameter names: what ours are held to.

To be imported only where PyTorch is.
"""

import torch
from torch import nn

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def conv_norm(channels: int, features: int, size: int, stride: int = 1, relu: bool = False) -> nn.Sequential:
    convolution = nn.Conv2d(channels, features, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(features), *([nn.ReLU()] if relu else []))


class Block(nn.Module):
    """Convolutions of `sizes` with normalisation, and the identity or a projection."""

    def __init__(self, channels: int, widths: tuple[int, ...], sizes: tuple[int, ...], stride: int = 1):
        super().__init__()
        self.downsample = None
        if stride > 1 or channels != widths[-1]:
            self.downsample = conv_norm(channels, widths[-1], 1, stride)
        self.length = len(sizes)
        for index, (width, size) in enumerate(zip(widths, sizes, strict=True), start=1):
            # The stride is that of the first 3x3 convolution.
            step = stride if index == (1 if len(sizes) == 2 else 2) else 1
            convolution, norm = conv_norm(channels, width, size, step)
            self.add_module(f"conv{index}", convolution)
            self.add_module(f"bn{index}", norm)
            channels = width

    def forward(self, inputs):
        x = inputs
        for index in range(1, self.length + 1):
            x = self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(x))
            x = torch.relu(x) if index < self.length else x
        return torch.relu(x + (inputs if self.downsample is None else self.downsample(inputs)))


def basic(channels: int, width: int, stride: int = 1) -> Block:
    return Block(channels, (width, width), (3, 3), stride)


def bottleneck(channels: int, width: int, stride: int = 1) -> Block:
    return Block(channels, (width, width, 4 * width), (1, 3, 1), stride)


class ResNet(nn.Module):
    def __init__(self, depth: int = 50, width: int = 64, num_classes: int | None = 1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        block, expansion = (basic, 1) if depth < 50 else (bottleneck, 4)
        channels = width
        for stage, count in enumerate(BLOCKS[depth]):
            blocks = []
            for index in range(count):
                blocks.append(block(channels, width * 2**stage, 2 if stage and not index else 1))
                channels = expansion * width * 2**stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.out_channels = channels
        if num_classes is not None:
            self.fc = nn.Linear(channels, num_classes)

    def levels(self, images):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(images))))
        levels = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            levels.append(x)
        return levels

    def forward(self, images):
        return self.fc(self.levels(images)[-1].mean((2, 3)))


class SimpleBaseline(ResNet):
    def __init__(self, depth: int = 50, num_keypoints: int = 17, width: int = 64, features: int = 256):
        super().__init__(depth, width, num_classes=None)
        layers, channels = [], self.out_channels
        for _ in range(3):
            layers += [nn.ConvTranspose2d(channels, features, 4, 2, 1, bias=False), nn.BatchNorm2d(features)]
            layers += [nn.ReLU()]
            channels = features
        self.deconv_layers = nn.Sequential(*layers)
        self.final_layer = nn.Conv2d(features, num_keypoints, 1)

    def forward(self, images):
        return self.final_layer(self.deconv_layers(self.levels(images)[-1]))


class RetinaNet(nn.Module):
    """Outputs [B, N, C] and [B, N, 4], by torchvision's names."""

    def __init__(
        self, resnet: int, classes: int, width: int, features: int, num_anchors: int, depth: int, coarse: str
    ):
        super().__init__()
        self.coarse, self.numbers = coarse, {"classification": classes, "regression": 4}
        body = ResNet(resnet, width, num_classes=None)
        channels = [body.out_channels // 4, body.out_channels // 2, body.out_channels]
        inner = [nn.Sequential(nn.Conv2d(c, features, 1)) for c in channels]
        layer = [nn.Sequential(nn.Conv2d(features, features, 3, 1, 1)) for _ in channels]
        p6 = nn.Conv2d(channels[-1] if coarse == "c5" else features, features, 3, 2, 1)
        extra = nn.ModuleDict({"p6": p6, "p7": nn.Conv2d(features, features, 3, 2, 1)})
        blocks = {"inner_blocks": nn.ModuleList(inner), "layer_blocks": nn.ModuleList(layer)}
        fpn = nn.ModuleDict({**blocks, "extra_blocks": extra})
        self.backbone = nn.ModuleDict({"body": body, "fpn": fpn})
        self.head = nn.ModuleDict()
        for head, last in (("classification", "cls_logits"), ("regression", "bbox_reg")):
            tower = [nn.Sequential(nn.Conv2d(features, features, 3, 1, 1), nn.ReLU()) for _ in range(depth)]
            output = nn.Conv2d(features, num_anchors * self.numbers[head], 3, 1, 1)
            self.head[f"{head}_head"] = nn.ModuleDict({"conv": nn.Sequential(*tower), last: output})

    def pyramid(self, images):
        fpn = self.backbone["fpn"]
        levels = self.backbone["body"].levels(images)[1:]
        merged = [inner(x) for inner, x in zip(fpn["inner_blocks"], levels, strict=True)]
        for index in (1, 0):
            size = merged[index].shape[2:]
            merged[index] = merged[index] + nn.functional.interpolate(merged[index + 1], size)
        outputs = [layer(x) for layer, x in zip(fpn["layer_blocks"], merged, strict=True)]
        p6 = fpn["extra_blocks"]["p6"](levels[-1] if self.coarse == "c5" else outputs[-1])
        return [*outputs, p6, fpn["extra_blocks"]["p7"](torch.relu(p6))]

    def forward(self, images):
        levels, outputs = self.pyramid(images), []
        for name, head in self.head.items():
            last = head["cls_logits"] if "cls_logits" in head else head["bbox_reg"]
            maps = [last(head["conv"](level)).permute(0, 2, 3, 1) for level in levels]
            numbers = self.numbers[name.removesuffix("_head")]
            outputs.append(torch.cat([x.reshape(len(x), -1, numbers) for x in maps], 1))
        return outputs


class Exchange(nn.Module):
    """One multi-resolution module: blocks on every branch, then `outputs` sums over all branches."""

    def __init__(self, widths: list[int], blocks: int, outputs: int):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(basic(width, width) for _ in range(blocks))) for width in widths
        )
        self.fuse_layers = nn.ModuleList()
        for target in range(outputs):
            paths = [self._path(widths, source, target) for source in range(len(widths))]
            self.fuse_layers.append(nn.ModuleList(paths))

    @staticmethod
    def _path(widths: list[int], source: int, target: int) -> nn.Module:
        if source > target:
            path = conv_norm(widths[source], widths[target], 1)
            path.append(nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"))
            return path
        steps = []
        for step in range(target - source):
            last = step == target - source - 1
            width = widths[target] if last else widths[source]
            steps.append(conv_norm(widths[source], width, 3, 2, relu=not last))
        return nn.Sequential(*steps)

    def forward(self, branches):
        branches = [blocks(x) for blocks, x in zip(self.branches, branches, strict=True)]
        return [
            torch.relu(sum(path(x) for path, x in zip(paths, branches, strict=True)))
            for paths in self.fuse_layers
        ]


class HRNet(nn.Module):
    """With `classifier` the last module keeps all branches, as the ImageNet network does."""

    def __init__(
        self,
        width: int = 32,
        num_keypoints: int = 17,
        stem: int = 64,
        stem_blocks: int = 4,
        modules: tuple[int, int, int] = (1, 4, 3),
        blocks: int = 4,
        classifier: bool = False,
    ):
        super().__init__()
        (self.conv1, self.bn1), (self.conv2, self.bn2) = conv_norm(3, stem, 3, 2), conv_norm(stem, stem, 3, 2)
        first = [bottleneck(stem if index == 0 else 4 * stem, stem) for index in range(stem_blocks)]
        self.layer1 = nn.Sequential(*first)
        widths, coarsest = [width], 4 * stem
        start = conv_norm(4 * stem, width, 3, relu=True)
        for stage, count in enumerate(modules, start=2):
            widths.append(2 * widths[-1])
            new = nn.Sequential(conv_norm(coarsest, widths[-1], 3, 2, relu=True))
            kept = [start] if stage == 2 else [nn.Identity()] * (stage - 1)
            self.add_module(f"transition{stage - 1}", nn.ModuleList([*kept, new]))
            last = stage == 4 and not classifier
            outputs = [1 if last and module == count - 1 else stage for module in range(count)]
            self.add_module(f"stage{stage}", nn.Sequential(*(Exchange(widths, blocks, n) for n in outputs)))
            coarsest = widths[-1]
        if classifier:
            self.incre_modules = nn.ModuleList(bottleneck(x, 8) for x in widths)
            self.downsamp_modules = nn.ModuleList(conv_norm(32, 32, 3, 2, relu=True) for _ in range(3))
            self.final_layer = conv_norm(32, 64, 1, relu=True)
            self.classifier = nn.Linear(64, 10)
        else:
            self.final_layer = nn.Conv2d(width, num_keypoints, 1)

    def forward(self, images):
        x = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(images))))))
        x = self.layer1(x)
        branches = [x, x]
        for stage in (2, 3, 4):
            transition = self.get_submodule(f"transition{stage - 1}")
            branches = [move(x) for move, x in zip(transition, branches, strict=True)]
            branches = self.get_submodule(f"stage{stage}")(branches)
            branches = [*branches, branches[-1]]
        return self.final_layer(branches[0])


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic drawn at random, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in network.state_dict().items():
            if name.endswith("running_var") or (name.endswith("weight") and x.ndim == 1):
                x.uniform_(0.5, 1.5, generator=generator)
            elif x.ndim > 1:
                x.normal_(0.0, (2.0 / x[0].numel()) ** 0.5, generator=generator)
            elif x.is_floating_point():
                x.normal_(0.0, 0.2, generator=generator)
    return network.eval()


def run(forward, images):
    """NHWC numpy in, one output or several of them out in the same layout."""
    with torch.inference_mode():
        outputs = forward(torch.from_numpy(images).permute(0, 3, 1, 2))
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return [x.permute(0, 2, 3, 1).numpy() if x.ndim == 4 else x.numpy() for x in outputs]
