"""The U-Net: shapes, zero at birth, gradients everywhere, classes, independence of the batch."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from sfumato.networks import UNet, UNetOptions

SMALL = UNetOptions(width=8, multipliers=(1, 2), attention=(1,), patch=1)
SHAPES = [(1, 28, 28), (1, 8, 8), (3, 32, 32), (2, 27, 31), (1, 5, 1)]
OPTIONS = [
    SMALL,
    UNetOptions(width=8, multipliers=(1, 2, 2), patch=2),
    UNetOptions(width=16, multipliers=(1,), blocks=2, attention=(0,), patch=4),
    UNetOptions(width=8, multipliers=(1, 1, 2), attention=(0, 2), patch=3, dropout=0.1),
]


@pytest.fixture(autouse=True)
def one_thread():
    """The networks are too small to share: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def awake(network: UNet) -> UNet:
    """With an output layer that is no longer zero, not training."""
    torch.manual_seed(1)
    torch.nn.init.normal_(network.net.conv_out.weight, std=0.1)
    return network.eval()


def inputs(shape, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator)
    return x, torch.rand(count, generator=generator) * 2 - 1


@pytest.mark.parametrize(
    ("shape", "options"),
    [(shape, OPTIONS[(i + j) % 4]) for i, shape in enumerate(SHAPES) for j in (0, 1)],
    ids=lambda value: f"patch{value.patch}" if isinstance(value, UNetOptions) else str(value),
)
def test_any_size_goes_through_and_an_untrained_network_is_zero(shape, options):
    network = UNet(shape, options)
    x, label = inputs(shape)
    assert torch.equal(network(x, label), torch.zeros_like(x))
    y = awake(network)(x, label)
    assert y.shape == x.shape and y.isfinite().all() and y.abs().min() > 0


@pytest.mark.parametrize(("size", "levels"), [((28, 28), 3), ((27, 31), 4)], ids=str)
def test_levels_are_not_padded(size, levels):
    options = UNetOptions(width=8, multipliers=(1,) * levels, patch=1)
    network, seen = awake(UNet((1, *size), options)), []
    for block in [network.net.conv_in, *network.net.down_blocks[:-1], network.net.mid_block]:
        block.register_forward_hook(
            lambda _, args, out: seen.append(tuple((out if torch.is_tensor(out) else out[0]).shape))
        )
    network(*inputs((1, *size), count=1))
    expected = [size]
    for _ in range(levels - 1):
        expected.append(tuple((side + 1) // 2 for side in expected[-1]))
    assert [shape[2:] for shape in seen] == [*expected, expected[-1]]


def test_a_patch_is_cut_into_channels_and_put_back():
    network = UNet((1, 4, 6), UNetOptions(width=8, multipliers=(1,), patch=2))
    seen = []
    network.net.forward = lambda u, *_, **__: seen.append(u) or (u,)  # type: ignore[method-assign]
    x = torch.arange(24.0).reshape(1, 1, 4, 6)
    assert torch.equal(network(x, torch.zeros(1)), x)
    corners = torch.stack([x[0, 0, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    assert torch.equal(seen[0][0], corners)


def test_odd_sizes_are_padded_with_their_edge_and_cropped():
    network = UNet((1, 3, 3), UNetOptions(width=8, multipliers=(1,), patch=2))
    seen = []
    network.net.forward = lambda u, *_, **__: seen.append(u) or (u,)  # type: ignore[method-assign]
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert torch.equal(network(x, torch.zeros(1)), x)
    padded = F.pixel_shuffle(seen[0], 2)[0, 0].numpy()
    assert padded.tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [6, 7, 8, 8], [6, 7, 8, 8]]


def test_every_parameter_learns():
    network = UNet((1, 8, 8), dataclasses.replace(SMALL, multipliers=(1, 2, 2)), classes=3)
    x, label = inputs((1, 8, 8), count=4)
    classes = torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    losses = []
    for _ in range(2):
        loss = (network(x, label, classes) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    still = [n for n, value in network.named_parameters() if torch.equal(value, before[n])]
    assert still == [] and losses[1] < losses[0]


@pytest.mark.parametrize("options", OPTIONS[:3], ids=lambda o: f"patch{o.patch}")
def test_an_image_does_not_depend_on_its_batch(options):
    network = awake(UNet((1, 12, 12), options, classes=4))
    x, label = inputs((1, 12, 12), count=66)
    classes = torch.arange(66) % 5
    whole = network(x, label, classes)
    alone = torch.cat(
        [network(x[i : i + 1], label[i : i + 1], classes[i : i + 1]) for i in (0, 65)]
    )
    torch.testing.assert_close(whole[[0, 65]], alone, rtol=0, atol=1e-5)
    assert torch.equal(whole, network(x, label, classes))


def test_channels_last_changes_nothing_but_the_layout():
    network = awake(UNet((3, 10, 10), OPTIONS[1]))
    x, label = inputs((3, 10, 10))
    plain = network(x, label)
    network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x, label), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("attention", "where"),
    [
        ((), set()),
        ((0,), {"down_blocks.0", "up_blocks.2"}),
        ((2,), {"down_blocks.2", "mid_block", "up_blocks.0"}),
        ((3,), {"mid_block"}),
    ],
    ids=lambda value: "-".join(map(str, sorted(value))) or "none",
)
def test_attention_is_where_it_is_asked_for(attention, where):
    """Levels by number, finest first, and the middle block by the number of levels."""
    network = UNet((1, 8, 8), UNetOptions(width=8, attention=attention))
    names = [name for name, _ in network.net.named_parameters() if ".to_q." in name]
    assert {name.partition(".attentions")[0] for name in names} == where


def test_labels_and_classes_are_heard():
    network = awake(UNet((1, 8, 8), SMALL, classes=3))
    x, label = inputs((1, 8, 8), count=1)
    labels = torch.linspace(-1, 1, 33)
    answers = network(x.expand(33, -1, -1, -1), labels, torch.zeros(33, dtype=torch.int64))
    assert torch.pdist(answers.flatten(1)).min() > 1e-3
    told = [network(x, label, torch.tensor([c])) for c in range(4)]
    assert torch.pdist(torch.cat(told).flatten(1)).min() > 1e-3
    assert torch.equal(network(x, label), told[3])


def test_options_travel_as_json():
    options = UNetOptions(width=24, multipliers=(1, 3), attention=(1,), patch=2, dropout=0.25)
    text = json.dumps(dataclasses.asdict(options))
    assert UNetOptions(**json.loads(text)) == options
    assert hash(UNetOptions(**json.loads(text))) == hash(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 12}, "width must be a multiple of 8; got 12"),
        ({"width": 0}, "width must be a whole number from 1; got 0"),
        ({"width": 32.0}, "width must be a whole number from 1; got 32.0"),
        ({"blocks": True}, "blocks must be a whole number from 1; got True"),
        ({"patch": -1}, "patch must be a whole number from 1; got -1"),
        ({"multipliers": ()}, "one per level; got ()"),
        ({"multipliers": [1, 0]}, "one per level; got (1, 0)"),
        ({"multipliers": [1, 1.5]}, "multipliers must be whole numbers; got (1, 1.5)"),
        ({"multipliers": "12"}, "multipliers must be a list of whole numbers; got '12'"),
        ({"attention": (4,)}, "attention names level 4; with 3 multipliers"),
        ({"attention": 2}, "attention must be a list of whole numbers; got 2"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1; got 1.0"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        UNetOptions(**options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((28, 28), None, "shape must be (channels, height, width) from 1; got (28, 28)"),
        ((1, 0, 8), None, "from 1; got (1, 0, 8)"),
        ((1, 8, 8), 0, "classes must be a whole number from 1; got 0"),
    ],
)
def test_wrong_networks_are_refused(shape, classes, message):
    with pytest.raises(ValueError) as error:
        UNet(shape, SMALL, classes)
    assert message in str(error.value)


X, T = torch.zeros(2, 1, 8, 8), torch.zeros(2)


@pytest.mark.parametrize(
    ("classes", "arguments", "message"),
    [
        (None, (X[:, :, :7], T), "works on signals of shape (1, 8, 8)"),
        (None, (X[0], T), "got (1, 8, 8)"),
        (None, (X, T[:1]), "label must be 2 floating-point numbers"),
        (None, (X, T[:, None]), "got torch.float32 of shape (2, 1)"),
        (None, (X, T.long()), "got torch.int64 of shape (2,)"),
        (None, (X, T, T.long()), "built without classes"),
        (3, (X, T, T), "classes must be 2 integers, one per image; got torch.float32"),
        (3, (X, T, T.long()[:1]), "got torch.int64 of shape (1,)"),
        (3, (X, T, torch.tensor([0, 4])), "classes must be 0 to 2, or 3 for none; got 0 to 4"),
        (3, (X, T, torch.tensor([-1, 0])), "got -1 to 0"),
    ],
)
def test_wrong_calls_are_refused(classes, arguments, message):
    with pytest.raises(ValueError) as error:
        UNet((1, 8, 8), SMALL, classes)(*arguments)
    assert message in str(error.value)
