"""The heat map and the film of a policy."""

from __future__ import annotations

from PIL import Image
from tiny import TINY, random_policy

from lr_gym.analysis.pictures import draw
from lr_gym.control.spec import ControlSpec


def test_a_frame_for_every_decision(tmp_path):
    policy = random_policy(ControlSpec(decisions=4))
    picture, film = draw(policy, TINY, tmp_path, lr=1e-2)
    with Image.open(film) as opened:
        assert opened.n_frames == 5
        assert opened.size == (640, 320)
    with Image.open(picture) as opened:
        assert opened.size[0] > 500
        assert len(opened.convert("RGB").getcolors(1 << 24)) > 50
