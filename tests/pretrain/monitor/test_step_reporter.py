"""What counts as training time."""

from types import SimpleNamespace

import torch

from lit_gpt.model.config import ModelConfig
from pretrain.monitor import step_reporter
from pretrain.monitor.step_reporter import SpeedMonitor

CONFIG = ModelConfig.load("tiny_100K", vocab_size=64)


def test_queued_steps_count_as_training_and_a_queued_validation_does_not(monkeypatch):
    """A device that works off what is queued only when it is waited for, and a clock that it moves."""
    device = SimpleNamespace(clock=0.0, queued=0.0)

    def synchronize(_device):
        device.clock, device.queued = device.clock + device.queued, 0.0

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 0)
    monkeypatch.setattr(step_reporter, "time", SimpleNamespace(monotonic=lambda: device.clock))
    monitor = SpeedMonitor(CONFIG, torch.device("cuda", 0), world_size=1)
    monitor.step(tokens=100, attention_pairs=100, data_wait=0.0)
    device.queued = 3.0
    with monitor.pause():
        device.queued = 7.0
    assert device.clock == 10.0
    assert monitor.report().step_seconds == 3.0
