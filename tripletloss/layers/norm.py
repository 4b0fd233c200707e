"""The layer that scales embeddings to length one."""

from tripletloss.core import norm
from tripletloss.layers.settings import SettingsLayer


class Norm2Layer(SettingsLayer):
    """Scale every row to length one. Bottom (N, ...), top the same shape. No settings."""

    def setup(self, bottom, top):
        """Check arity; raises InputError."""
        self.check_arity(bottom, top, (1,), (1,), "one bottom and one top")
        self.read_settings()

    def reshape(self, bottom, top):
        """The top has the bottom's shape."""
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        """norm.l2_normalize."""
        self.normalized, self.lengths = norm.l2_normalize(bottom[0].data)
        top[0].data[...] = self.normalized

    def backward(self, top, propagate_down, bottom):
        """norm.l2_normalize_gradient."""
        if propagate_down[0]:
            bottom[0].diff[...] = norm.l2_normalize_gradient(self.normalized, self.lengths, top[0].diff)
