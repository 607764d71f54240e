"""Find the channels of a model that can be removed, and where each of them lies."""

from rankfold.pruning.groups import channel_groups as channel_groups
