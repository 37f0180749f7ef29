"""LL4AL's module: its ranking loss and taps by hand, trained along, and never in the way."""

import numpy as np
import pytest
import torch
from torch import nn

from tests import own_network
from trainer.config import LossPredictionConfig
from trainer.errors import FitError, NetworkError
from trainer.fit import TrainConfig, fit, losses, mean_loss
from trainer.networks import NETWORKS, build
from trainer.networks.loss_prediction import LossPrediction, find_taps, ranking_loss
from trainer.predict import logits

QUICK = TrainConfig(epochs=5, min_steps=0, extensions=0)
CROSS = TrainConfig(
    loss="cross_entropy", optimiser="adam", stop="schedule", epochs=5, min_steps=0, extensions=0
)


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def problem():
    """Images of two kinds that are mostly labelled by a mean of their pixels."""
    rng = generator(1)
    labels = rng.integers(0, 3, 24)
    images = rng.normal(size=(24, 1, 16, 16)) + labels[:, None, None, None]
    return images.astype(np.float32), labels


def network_of(name, **arguments):
    return build(name, (1, 16, 16), 3, generator(), arguments)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# The ranking loss


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9])
def test_ranking_loss_is_that_of_a_loop_over_pairs(size, rng):
    predicted, true = rng.normal(size=size), rng.normal(size=size)
    pairs = [(i, i + size // 2) for i in range(size // 2)]
    expected = 0.0
    for i, j in pairs:
        sign = 1 if true[i] > true[j] else -1
        expected += max(0.0, -sign * (predicted[i] - predicted[j]) + 0.7) / len(pairs)
    found = ranking_loss(torch.tensor(predicted), torch.tensor(true), 0.7)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_ranking_loss_by_hand():
    # pairs (0,2) and (1,3), the fifth is left out: 0 ranked right by 3, 1 ranked wrong by 0.5
    predicted = torch.tensor([4.0, 0.0, 1.0, 0.5, 9.0], requires_grad=True)
    value = ranking_loss(predicted, torch.tensor([2.0, 5.0, 1.0, 3.0, 0.0]))
    assert value.item() == (0 + 1.5) / 2
    value.backward()
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [0, -0.5, 0, 0.5, 0]
    assert ranking_loss(torch.tensor([0.0, 7.0]), torch.tensor([1.0, 1.0])).item() == 1  # a tie


@pytest.mark.parametrize("loss", ["l2", "cross_entropy"])
def test_losses_of_images_average_to_the_loss_of_the_batch(loss, rng):
    answers, targets = torch.tensor(rng.normal(size=(7, 4))), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    each = losses(answers, targets, loss)
    torch.testing.assert_close(each.mean(), mean_loss(answers, targets, loss))
    one = mean_loss(answers[2:3], targets[2:3], loss)
    torch.testing.assert_close(each[2], one)


# Taps


class Tokens(nn.Module):
    """A transformer's shapes, an activation that is called twice, and a tuple."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 6, 4, stride=4)
        self.mix = nn.Linear(6, 6)
        self.act = nn.ReLU()
        self.read = nn.LSTM(6, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.act(self.act(self.mix(x)) - 0.1)
        return self.head(self.read(x)[0].mean(1))


def block(channels, width, stride):
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )


def own():
    return nn.Sequential(
        nn.Identity(),
        block(1, 4, 1),
        block(4, 5, 2),
        block(5, 6, 1),
        nn.Dropout(0.5),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    ).eval()


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("wide_resnet", {"widen": 1}, [("blocks.0", 32)]),
        (
            "wide_resnet",
            {"widen": 1, "stages": 2, "blocks": 2},
            [("blocks.1", 32), ("blocks.3", 64)],
        ),
        (
            "resnet18",
            {},
            [("layer1", 64), ("layer2", 128), ("layer3", 256), ("layer4", 512)],
        ),
        ("cnn", {}, [("features.1", 32), ("features.3", 64), ("features.5", 128)]),
    ],
)
def test_taps_of_the_papers_networks(name, arguments, expected, problem):
    assert [*find_taps(network_of(name, **arguments), problem[0][:2])] == expected


@pytest.mark.parametrize("side", [16, 32])
def test_taps_of_vgg_are_its_groups(side):
    network = build("vgg11_bn", (1, side, side), 3, generator())
    taps = find_taps(network, np.zeros((2, 1, side, side), np.float32))
    assert [tap.width for tap in taps] == [64, 128, 256, 512, 512]
    kinds = [type(network.get_submodule(tap.name)) for tap in taps]
    assert kinds == [nn.MaxPool2d] * 4 + [nn.MaxPool2d if side == 32 else nn.ReLU]


def test_taps_of_ones_own_network(problem):
    images = problem[0][:2]
    # the end of each resolution: what drops out, averages or only reshapes adds nothing
    assert [*find_taps(own(), images)] == [("1.2", 4), ("3.2", 6), ("5", 6)]
    mlp = own_network.make((1, 16, 16), 3, hidden=5)
    assert [*find_taps(mlp, images)] == [("2", 5)]
    tokens = Tokens().eval()
    assert [*find_taps(tokens, images)] == [("patches", 6), ("mix", 6)]
    assert [*find_taps(tokens, images, ["mix"])] == [("mix", 6)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["body"], "no part 'body' to tap; its parts are patches, mix"),
        (["act"], "'act' is called 2 times"),
        (["read"], "'read' is called 0 times"),
        (["mix", "mix"], "name a module twice"),
    ],
)
def test_taps_that_cannot_be_read(names, message, problem):
    with pytest.raises(NetworkError, match=message):
        find_taps(Tokens().eval(), problem[0][:2], names)


def test_a_network_without_feature_maps_says_so(problem):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    with pytest.raises(NetworkError, match="no intermediate feature map .*--ll4al.taps NAME"):
        find_taps(linear, problem[0][:2])


# The module


def test_predictions_by_hand(problem):
    images = problem[0]
    network = network_of("cnn")
    module = LossPrediction.of(network, images[:2], generator(2), LossPredictionConfig(width=7))
    with torch.no_grad():
        h, brought = torch.tensor(images), []
        for place, layer in enumerate(network.features):  # pyright: ignore[reportArgumentType]
            h = layer(h)
            if place % 2:
                fc = module.maps[place // 2]
                brought.append(torch.relu(fc(h.mean((2, 3)))))
        expected = module.head(torch.cat(brought, 1))[:, 0].numpy()
    assert [b.shape[1] for b in brought] == [7, 7, 7]
    np.testing.assert_allclose(module.predict(network, images), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(module.predict(network, images, 5), expected, rtol=1e-4, atol=1e-6)


def test_the_same_generator_gives_the_same_module(problem):
    network = network_of("cnn")
    made = [state(LossPrediction.of(network, problem[0][:2], generator(s))) for s in (0, 0, 1)]
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def test_another_network_is_refused(problem):
    module = LossPrediction.of(network_of("cnn"), problem[0][:2], generator())
    with pytest.raises(NetworkError, match="a tap of the network is 'features.1', which is none"):
        module.predict(network_of("wide_resnet", widen=1), problem[0])
    module = LossPrediction.of(network_of("wide_resnet", widen=1), problem[0][:2], generator())
    with pytest.raises(NetworkError, match=r"have \[64\] channels .* was made for \[32\]"):
        module.predict(network_of("wide_resnet", widen=2), problem[0])


# Trained along


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (lambda: network_of("wide_resnet", widen=1), QUICK),
        (lambda: network_of("cnn"), CROSS),
        (own, QUICK),
    ],
    ids=["wide_resnet", "cnn", "own"],
)
def test_with_weight_0_the_network_is_trained_as_if_alone(make, config, problem):
    ends = []
    for auxiliary_module in (False, True):
        network = make()
        torch.manual_seed(0)
        start = {n: torch.rand(t.shape) - 0.5 for n, t in network.named_parameters()}
        network.load_state_dict(start, strict=False)
        module = LossPrediction.of(
            network, problem[0][:2], generator(4), LossPredictionConfig(weight=0.0)
        )
        images, labels = problem
        along = module if auxiliary_module else None
        result = fit(network, images, labels, config, generator(1), auxiliary_module=along)
        ends.append((state(network), result))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_trained_along_with(name, problem):
    images, labels = problem
    network = network_of(name)
    module = LossPrediction.of(network, images[:2], generator())
    before = module.predict(network, images[:6]), state(module)
    config = TrainConfig(epochs=1, min_steps=0, extensions=0, learning_rate=0.01)
    fit(network, images[:6], labels[:6], config, generator(), auxiliary_module=module)
    after = module.predict(network, images[:6])
    assert np.isfinite(after).all()
    assert not np.array_equal(before[0], after)
    assert not same(before[1], state(module))


def test_the_module_has_a_rate_of_its_own_that_is_never_above_the_networks(problem):
    """The first step of a module's weights is in proportion to it; the network's is not."""
    images, labels = problem
    steps = []
    for rate in (1e-4, 2e-4, 1.0):  # the last is above the network's
        network = network_of("cnn")
        module = LossPrediction.of(
            network, images[:2], generator(), LossPredictionConfig(learning_rate=rate)
        )
        before = state(module), state(network)
        config = TrainConfig(
            optimiser="adam", learning_rate=1e-3, epochs=1, min_steps=0, extensions=0
        )
        fit(network, images, labels, config, generator(), auxiliary_module=module)
        steps.append(
            [
                float((after[key] - start[key]).abs().max())
                for start, after, key in (
                    (before[0], state(module), "head.weight"),
                    (before[1], state(network), "head.weight"),
                )
            ]
        )
    of_module, of_network = zip(*steps, strict=True)
    np.testing.assert_allclose(of_module, [1e-4, 2e-4, 1e-3], rtol=1e-2)
    np.testing.assert_allclose(of_network, [1e-3] * 3, rtol=1e-2)


@pytest.mark.parametrize("detach", [0.0, 0.6, 1.0])
def test_the_network_feels_nothing_once_it_is_detached(detach, problem):
    """After 3 epochs of 5 the next steps are, bit for bit, those of the network alone."""
    network, alone = network_of("cnn"), network_of("cnn")
    module = LossPrediction.of(
        network, problem[0][:2], generator(), LossPredictionConfig(detach=detach, weight=50.0)
    )
    images = torch.tensor(problem[0])
    targets = torch.tensor(problem[1])
    for done in (0.0, 0.4, 0.6, 0.8):
        alone.load_state_dict(network.state_dict())
        for model in (network, alone):
            model.zero_grad()
        module.zero_grad()
        with module.watch(network) as seen:
            answers = network(images)
        each = losses(answers.detach(), targets, "l2")
        (mean_loss(answers, targets, "l2") + module.added(seen, each, done)).backward()
        mean_loss(alone(images), targets, "l2").backward()
        scaled, plain = (
            [p.grad for name, p in model.named_parameters() if name.startswith("features")]
            for model in (network, alone)
        )
        equal = all(
            a is not None and b is not None and torch.equal(a, b)
            for a, b in zip(scaled, plain, strict=True)
        )
        assert equal == (done >= detach)
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_the_network_feels_a_share_of_the_gradient_and_the_module_all_of_it(problem):
    images = torch.tensor(problem[0])
    answers, of_network, of_module = [], [], []
    for scale in (1.0, 0.25):
        network = network_of("cnn")
        module = LossPrediction.of(
            network, problem[0][:2], generator(), LossPredictionConfig(grad_scale=scale)
        )
        with module.watch(network) as seen:
            each = losses(network(images).detach(), torch.tensor(problem[1]), "l2")
        added = module.added(seen, each, 0.0)
        added.backward()
        answers.append(added.item())
        own = [p for name, p in network.named_parameters() if name.startswith("features")]
        of_network.append([p.grad.numpy() for p in own if p.grad is not None])
        of_module.append([p.grad.numpy() for p in module.parameters() if p.grad is not None])
    assert answers[0] == answers[1]
    assert any(np.abs(gradient).max() > 0 for gradient in of_network[0])
    for whole, share in zip(*of_network, strict=True):
        np.testing.assert_allclose(share, 0.25 * whole, rtol=1e-4, atol=1e-8)
    for whole, share in zip(*of_module, strict=True):
        np.testing.assert_array_equal(share, whole)


def test_fit_tells_the_module_how_far_it_is(problem, monkeypatch):
    told = []
    real = LossPrediction.added

    def note(self, seen, losses, done):
        told.append(done)
        assert not losses.requires_grad
        return real(self, seen, losses, done)

    monkeypatch.setattr(LossPrediction, "added", note)
    network = network_of("cnn")
    module = LossPrediction.of(network, problem[0][:2], generator())
    config = TrainConfig(
        epochs=4, min_steps=0, extensions=1, target_accuracy=1.0, learning_rate=1e-6
    )
    fit(network, problem[0], problem[1], config, generator(), auxiliary_module=module)
    assert told == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]  # one batch an epoch, then an extension


def test_the_module_goes_back_with_the_network_when_training_diverges(problem):
    network = network_of("cnn")
    module = LossPrediction.of(network, problem[0][:2], generator())
    before = state(network), state(module)
    config = TrainConfig(optimiser="adam", learning_rate=1e30, restarts=1)
    with pytest.raises(FitError, match="diverged 2 times"):
        fit(network, problem[0], problem[1], config, generator(), auxiliary_module=module)
    assert same(before[0], state(network))
    assert same(before[1], state(module))


def test_a_module_that_is_no_number_any_more_is_divergence(problem):
    network = network_of("cnn")
    module = LossPrediction.of(
        network, problem[0][:2], generator(), LossPredictionConfig(detach=0.0)
    )
    with torch.no_grad():
        module.head.weight.fill_(torch.inf)
    config = TrainConfig(restarts=0)
    with pytest.raises(FitError, match="diverged 1 times"):
        fit(network, problem[0], problem[1], config, generator(), auxiliary_module=module)


def test_losses_that_can_be_foretold_are_learned(problem):
    """Some images have a label by chance: a network that cannot know it errs there, and says so."""
    rng = generator(7)
    images = rng.normal(size=(240, 1, 4, 4)).astype(np.float32)
    odd = rng.random(240) < 0.5
    images[odd, 0, 0, 0] += 6.0
    labels = rng.integers(0, 2, 240)
    images[~odd, 0, 3, 3] += 6.0 * labels[~odd] - 3.0  # the others' are by chance
    network = build("tests.own_network:make", (1, 4, 4), 2, generator(), {"hidden": 8})
    module = LossPrediction.of(network, images[:4], generator(1))
    config = TrainConfig(
        optimiser="adam", learning_rate=1e-2, epochs=30, min_steps=0, extensions=0, batch_size=40
    )
    fit(network, images[:160], labels[:160], config, generator(), auxiliary_module=module)
    assert not module.training
    predicted = module.predict(network, images[160:])
    true = losses(
        torch.tensor(logits(network, images[160:])), torch.tensor(labels[160:]), "l2"
    ).numpy()
    highest = np.argsort(-predicted)[:30]
    assert odd[160:][highest].mean() > 0.8  # half of them are
    assert true[highest].mean() > 2 * true[np.argsort(predicted)[:30]].mean()
    assert logits(network, images[:2]).shape == (2, 2)
