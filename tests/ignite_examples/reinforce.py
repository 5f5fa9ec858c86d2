"""Situation: an epoch is an episode, whose length varies; the optimizer steps at its end."""

from types import SimpleNamespace

import torch
from ignite.engine import Engine, Events
from torch import nn

EPISODES = 12
LONGEST = 60


class Balance:
    """A point that drifts away from 0 unless it is pushed back; over 1 the episode ends."""

    def reset(self, seed):
        draws = torch.Generator().manual_seed(seed)
        self.state = 0.1 * torch.randn(2, generator=draws)
        return self.state

    def step(self, action):
        place, speed = self.state.tolist()
        speed += 0.1 * place + (0.05 if action else -0.05)
        self.state = torch.tensor([place + speed, speed])
        return self.state, 1.0, abs(place + speed) > 1


def build(crash_at=None):
    torch.manual_seed(1)
    policy = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    environment = Balance()
    log_probs, rewards, lengths = [], [], []

    def step(engine, timestep):
        choice = torch.distributions.Categorical(logits=policy(engine.state.observation))
        action = choice.sample()
        engine.state.observation, reward, is_over = environment.step(action.item())
        log_probs.append(choice.log_prob(action))
        rewards.append(reward)
        if is_over:
            engine.terminate_epoch()
        return {"reward": reward, "probability": choice.probs[action].detach()}

    trainer = Engine(step)
    trainer.state_dict_user_keys.append("running_reward")
    trainer.state.running_reward = 10.0

    @trainer.on(Events.EPOCH_STARTED)
    def begin_episode(engine):
        torch.manual_seed(engine.state.epoch)  # a resumed run draws what the unbroken one draws
        engine.state.observation = environment.reset(engine.state.epoch)

    @trainer.on(Events.EPOCH_COMPLETED)
    def learn(engine):
        returns, total = [], 0.0
        for reward in reversed(rewards):
            total = reward + 0.95 * total
            returns.insert(0, total)
        returns = torch.tensor(returns)
        returns = (returns - returns.mean()) / (returns.std() + 1e-6)
        optimizer.zero_grad()
        (-torch.stack(log_probs) * returns).sum().backward()
        optimizer.step()
        lengths.append(len(rewards))
        engine.state.running_reward = 0.95 * engine.state.running_reward + 0.05 * sum(rewards)
        log_probs.clear()
        rewards.clear()

    if crash_at is not None:

        @trainer.on(Events.EPOCH_STARTED(once=crash_at))
        def crash():
            raise RuntimeError("the machine is gone")

    return SimpleNamespace(
        policy=policy,
        optimizer=optimizer,
        trainer=trainer,
        timesteps=range(LONGEST),
        lengths=lengths,
    )
