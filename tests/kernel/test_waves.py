import pytest

from kernel.sharded import waves


@pytest.mark.parametrize(
    ("images", "chunk", "devices"), [(1, 4, 8), (7, 2, 3), (64, 8, 8), (65, 8, 8), (500, 16, 4)]
)
def test_waves_hold_every_image_once(images, chunk, devices):
    found = waves(3, 3 + images, chunk, devices)
    rows = [
        row
        for wave in found
        for device in range(devices)
        for row in range(*wave.share(device, 2).indices(10_000))
    ]
    assert rows == list(range(6, 6 + 2 * images))
    (size,) = {len(wave.places) for wave in found}  # one shape is compiled
    assert size % devices == 0
    assert size <= devices * chunk
    assert len(found) == -(-images // (devices * chunk))
    for wave in found:
        assert wave.places[: wave.images].tolist() == list(range(wave.start, wave.stop))
        assert (wave.places[wave.images :] == 2 + images).all()


def test_few_images_more_are_no_new_shape():
    sizes = {len(waves(0, images, 64, 8)[0].places) for images in range(1000, 1400, 10)}
    assert len(sizes) < 10


def test_no_images_are_no_waves():
    assert waves(5, 5, 4, 2) == []
