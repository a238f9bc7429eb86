"""Tensors in buckets of bytes."""

import torch

from rlkl.weights.buckets import Manifest, Outline


def outline(name: str, *shape: int, dtype: str = "float32") -> Outline:
    return Outline(name=name, dtype=dtype, shape=shape)


def test_tensors_stay_whole_and_in_order():
    listed = [outline("a", 3), outline("b", 2, 2), outline("big", 100), outline("c"), outline("d", 5, dtype="bfloat16")]
    buckets = Manifest(version=1, tensors=tuple(listed), bucket_bytes=48).buckets()

    assert [[tensor.name for tensor in bucket.tensors] for bucket in buckets] == [["a", "b"], ["big"], ["c", "d"]]
    assert [bucket.number for bucket in buckets] == [0, 1, 2]
    assert [bucket.bytes for bucket in buckets] == [32, 400, 32]


def test_views_hold_the_bits_whatever_the_types_beside_them():
    listed = (outline("odd", 3, dtype="bfloat16"), outline("number"), outline("matrix", 2, 3), outline("empty", 0, 4))
    bucket = Manifest(version=1, tensors=listed).buckets()[0]
    wanted = [torch.randn(tensor.shape).to(getattr(torch, tensor.dtype)) for tensor in listed]
    buffer_N = torch.empty(bucket.bytes, dtype=torch.uint8)

    for (_, view), tensor in zip(bucket.views(buffer_N), wanted, strict=True):
        view.copy_(tensor)

    found = dict(bucket.views(buffer_N))
    assert list(found) == ["odd", "number", "matrix", "empty"]
    assert all(torch.equal(one, other) for one, other in zip(found.values(), wanted, strict=True))
