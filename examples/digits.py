# %% [markdown]
# # From a trained network to a smaller one, stage by stage
#
# LeNet-5 for handwritten digits, with weights that come with rankfold. `rf.compress` does all of this in one call;
# here every stage is called by itself, so that you can look at what it hands to the next. Run it as a script;
# `--smoke` makes it short.

# %%
import argparse
import tempfile

import rankfold as rf

parser = argparse.ArgumentParser(description="From a trained network to a smaller one, stage by stage.")
parser.add_argument("--smoke", action="store_true", help="a few images and one epoch only")
smoke = parser.parse_args().smoke

info = rf.zoo.entry("lenet5_mnist5k")
model = rf.zoo.create(info.name, weights="bundled")
example = rf.zoo.example_input(info.name)
train = rf.zoo.data("mnist5k", split="train", normalize=info, batch_size=64, shuffle=True, limit=256 if smoke else None)
images = rf.zoo.data("mnist5k", split="calibration", normalize=info, limit=128 if smoke else 1024)
test = rf.zoo.data("mnist5k", split="test", normalize=info)

# %% [markdown]
# What is there to compress? The coverage line first.

# %%
inventory = rf.inspect(model, example)
print(inventory.summary())

# %% [markdown]
# A plan says what to do with every layer. It is a small JSON file that you can read and edit. The last classifier is
# kept by hand.

# %%
plan = rf.plan(model, example, budget="params<=25%", calibration=images, overrides={"fc3": None})
for name, choice in plan.layers.items():
    print(f"{name:8}", f"{choice.method} {list(choice.ranks)}" if choice.method else f"kept: {choice.reason}")

# %% [markdown]
# Apply it, look at the damage, and repair it: the labels' loss plus distillation from the original.

# %%
top1 = rf.top1(test)
small = rf.apply(model, plan, calibration=images)
print(f"before {rf.evaluate(model, top1):.2%}, after {rf.evaluate(small, top1):.2%}")
print(f"same answer as the original on {rf.evaluate(small, rf.agreement(model, images)):.2%} of the unlabelled images")
tuned = rf.finetune(small, rf.FineTune(data=train, epochs=1 if smoke else 8, optimizer="adamw", lr=1e-3), teacher=model)
print(f"fine-tuned {rf.evaluate(tuned.model, top1):.2%}")

# %% [markdown]
# Save, load onto a fresh instance, and measure that: the number that counts.

# %%
with tempfile.TemporaryDirectory() as folder:
    rf.save(tuned.model, folder)
    again = rf.load(folder, rf.zoo.create(info.name, seed=0))
print(f"reloaded {rf.evaluate(again, top1):.2%}")
dense, left = (sum(p.numel() for p in m.parameters()) for m in (model, again))
print(f"{dense:,} -> {left:,} parameters ({dense / left:.1f}x)")
