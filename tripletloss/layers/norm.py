"""The layer that scales embeddings to length one."""

from collections.abc import Sequence

from tripletloss.core import norm
from tripletloss.layers.settings import Blobs, SettingsLayer


class Norm2Layer(SettingsLayer):
    """Scale every row to length one. Bottom (N, ...), top the same shape. No settings."""

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        """Check arity. Raises InputError."""
        self.check_arity(bottom, top, (1,), (1,), "one bottom and one top")
        self.read_settings()

    def reshape(self, bottom: Blobs, top: Blobs) -> None:
        """Give the top the bottom's shape."""
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        """Compute norm.l2_normalize."""
        self.normalized, self.lengths = norm.l2_normalize(bottom[0].data)
        top[0].data[...] = self.normalized

    def backward(self, top: Blobs, propagate_down: Sequence[bool], bottom: Blobs) -> None:
        """Compute norm.l2_normalize_gradient."""
        if propagate_down[0]:
            bottom[0].diff[...] = norm.l2_normalize_gradient(self.normalized, self.lengths, top[0].diff)
