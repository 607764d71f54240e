# %% [markdown]
# # Compress a network stage by stage
#
# The network is LeNet-5 for handwritten digits, with the weights that are included in rankfold. `rf.compress` runs all
# stages in one call; here each stage is called separately, so that you can look at its result. Run this file as a
# script; `--smoke` shortens it.

# %%
import argparse
import tempfile

import rankfold as rf

parser = argparse.ArgumentParser(description="Compress a network stage by stage.")
parser.add_argument("--smoke", action="store_true", help="use a few images and one epoch")
smoke = parser.parse_args().smoke

info = rf.zoo.entry("lenet5_mnist5k")
model = rf.zoo.create(info.name, weights="bundled")
example = rf.zoo.example_input(info.name)
train = rf.zoo.data("mnist5k", split="train", normalize=info, batch_size=64, shuffle=True, limit=256 if smoke else None)
images = rf.zoo.data("mnist5k", split="calibration", normalize=info, limit=128 if smoke else 1024)
test = rf.zoo.data("mnist5k", split="test", normalize=info)

# %% [markdown]
# List the layers. The summary states how much of the network can be compressed.

# %%
inventory = rf.inspect(model, example)
print(inventory.summary())

# %% [markdown]
# Plan. A plan states the method and the ranks of each layer, and can be saved as a JSON file and edited. The override
# keeps the last linear layer.

# %%
plan = rf.plan(model, example, budget="params<=25%", calibration=images, overrides={"fc3": None})
for name, choice in plan.layers.items():
    print(f"{name:8}", f"{choice.method} {list(choice.ranks)}" if choice.method else f"kept: {choice.reason}")

# %% [markdown]
# Apply the plan, measure the loss of accuracy, and fine-tune: task loss plus distillation from the original.

# %%
top1 = rf.top1(test)
small = rf.apply(model, plan, calibration=images)
print(f"before {rf.evaluate(model, top1):.2%}, after {rf.evaluate(small, top1):.2%}")
print(f"same answer as the original on {rf.evaluate(small, rf.agreement(model, images)):.2%} of the unlabeled images")
tuned = rf.finetune(small, rf.FineTune(data=train, epochs=1 if smoke else 8, optimizer="adamw", lr=1e-3), teacher=model)
print(f"fine-tuned {rf.evaluate(tuned.model, top1):.2%}")

# %% [markdown]
# Save, load onto a new instance, and measure the loaded model.

# %%
with tempfile.TemporaryDirectory() as folder:
    rf.save(tuned.model, folder)
    again = rf.load(folder, rf.zoo.create(info.name, seed=0))
print(f"reloaded {rf.evaluate(again, top1):.2%}")
dense, left = (sum(p.numel() for p in m.parameters()) for m in (model, again))
print(f"{dense:,} -> {left:,} parameters ({dense / left:.1f}x)")
