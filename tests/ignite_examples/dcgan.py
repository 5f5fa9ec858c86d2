"""Situation: two networks with an optimizer each, and a step that returns five numbers."""

from types import SimpleNamespace

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.data import DataLoader

from ignite_examples.mnist import digits

EPOCHS = 3
COLUMNS = ("errD", "errG", "D_x", "D_G_z1", "D_G_z2")


def build():
    torch.manual_seed(1)
    real, _ = digits(400)
    generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())
    critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.999))
    loss_fn = nn.BCEWithLogitsLoss()

    def judge(images, is_real):
        logits = critic(images)
        loss = loss_fn(logits, torch.full_like(logits, float(is_real)))
        return loss, logits.detach().sigmoid().mean().item()

    def step(engine, batch):
        images, _ = batch
        fakes = generator(torch.randn(len(images), 8))
        optimizer_d.zero_grad()
        loss_real, d_x = judge(images, is_real=True)
        loss_fake, d_g_z1 = judge(fakes.detach(), is_real=False)
        (loss_real + loss_fake).backward()
        optimizer_d.step()
        optimizer_g.zero_grad()
        loss_g, d_g_z2 = judge(fakes, is_real=True)
        loss_g.backward()
        optimizer_g.step()
        numbers = ((loss_real + loss_fake).item(), loss_g.item(), d_x, d_g_z1, d_g_z2)
        return dict(zip(COLUMNS, numbers, strict=True))

    trainer = Engine(step)
    outputs = []  # of every iteration, for the tests
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: outputs.append(trainer.state.output)
    )
    return SimpleNamespace(
        generator=generator,
        critic=critic,
        optimizer_g=optimizer_g,
        optimizer_d=optimizer_d,
        trainer=trainer,
        loader=DataLoader(real, batch_size=50, shuffle=True),
        outputs=outputs,
    )
