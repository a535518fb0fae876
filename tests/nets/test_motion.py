import math

import torch

from anomaly_lab.nets.motion import RigidMotion


def draw(count=50, rotate=30.0, translate=0.1, flip="both"):
    return RigidMotion.draw(count, rotate=rotate, translate=translate, flip=flip, device=torch.device("cpu"))


def test_angles_shifts_and_flips_are_what_is_asked_for():
    torch.manual_seed(0)
    matrix = draw(2000).matrix
    turn, shift = matrix[:, :, :2], matrix[:, :, 2]
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(2).expand(2000, 2, 2), atol=1e-5, rtol=0)
    mirrored = torch.det(turn) < 0
    assert 0.45 < mirrored.float().mean() < 0.55
    angle = torch.atan2(turn[~mirrored, 1, 0].abs(), turn[~mirrored, 0, 0].abs())
    assert angle.max() <= math.radians(30) + 1e-5
    assert angle.max() > math.radians(29)
    assert 0.19 < shift.abs().max() <= 0.2  # a tenth of a side that is 2 long
    assert (torch.det(draw(200, flip="none").matrix[:, :, :2]) > 0).all()
    assert (draw(200, rotate=0, flip="horizontal").matrix[:, 1, 1] == 1).all()
    assert (draw(200, rotate=0, flip="vertical").matrix[:, 0, 0] == 1).all()


def test_a_flip_alone_is_exact():
    image = torch.rand(40, 3, 8, 8)
    moved = draw(40, rotate=0, translate=0)(image)
    options = [image, image.flip(3), image.flip(2), image.flip(2, 3)]
    for row in range(40):
        assert any(torch.allclose(moved[row], option[row], atol=1e-6) for option in options)
    assert not torch.allclose(moved, image)


def test_a_quarter_turn_and_a_shift_are_what_they_say():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    turn = RigidMotion(torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]]))
    torch.testing.assert_close(turn(image), image.rot90(1, (2, 3)), atol=1e-5, rtol=0)
    shift = RigidMotion(torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]]))  # a quarter of the side that is 2 long
    torch.testing.assert_close(shift(image)[..., :3], image[..., 1:], atol=1e-5, rtol=0)
    assert shift.inside(image)[0, 0, 0].tolist() == [True, True, True, False]


def test_inside_is_where_no_border_came_in():
    torch.manual_seed(0)
    image, motion = torch.ones(20, 1, 32, 32), draw(20, translate=0.3)
    inside = motion.inside(image)
    dark = motion(image, padding="zeros")
    assert (dark[inside] > 0.999).all()
    assert 0.2 < inside.float().mean() < 0.95
    assert (motion(image) > 0.999).all()  # mirrored otherwise


def test_coordinates_keep_their_digits_under_autocast():
    torch.manual_seed(0)
    motion, image = draw(4, rotate=15), torch.rand(4, 3, 64, 64)
    expected = motion(image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(motion(image), expected)
