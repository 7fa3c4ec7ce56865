"""PolicyOptimizer within transformers.Trainer equals a plain loop; Trainer's groups get names."""

from __future__ import annotations

import pytest
import torch
from deployed import acting, constant
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from lr_gym.integrations.transformers import PolicyCallback, trainer_groups
from lr_gym.layers import layout_of_named, muon_matrices
from lr_gym.optim import PolicyOptimizer

STEPS = 12
EXAMPLES = 8
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def classifier():
    config = BertConfig(
        vocab_size=20, intermediate_size=16, max_position_embeddings=8, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, **SIZES,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def language_model():
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, intermediate_size=16, **SIZES))


def data_of(kind):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (EXAMPLES, 6), generator=generator)
    labels = torch.arange(EXAMPLES) % 2
    if kind is language_model:
        # examples have different numbers of labels, so the mean over batches is not the loss
        labels = torch.where(torch.arange(6) < 2 + labels[:, None] * 4, tokens, -100)
    return [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]


def model_of(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().double()


def arguments(folder, **options):
    """Steps that see all examples, in two micro-batches of four."""
    return TrainingArguments(
        str(folder),
        **{
            "max_steps": STEPS,
            "per_device_train_batch_size": EXAMPLES // 2,
            "gradient_accumulation_steps": 2,
            "max_grad_norm": 0.0,
            "weight_decay": 0.1,
            "lr_scheduler_type": "constant",
            "logging_steps": 4,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **options,
        },
    )


def trainer_of(model, *args, **options):
    trainer = Trainer(model, *args, **options)
    if isinstance(model, BertForSequenceClassification):
        # Its loss is a mean over examples, but as the model takes any keyword argument, Trainer
        # would take it for a mean over all micro-batches of a step, and not divide it.
        trainer.model_accepts_loss_kwargs = False
    return trainer


def assert_close(model, twin, tolerance=1e-5):
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if not name.endswith("key.bias"):  # whose gradient is 0 but for rounding
            assert (p - q).norm() <= tolerance * q.norm(), name


def optimizer_of(model, policy):
    return PolicyOptimizer(trainer_groups(model, 0.1), policy, 0.01, STEPS)


def plain_loop(kind, policy, steps=STEPS):
    model = model_of(kind)
    optimizer = optimizer_of(model, policy)
    examples = data_of(kind)
    batch = {key: torch.stack([example[key] for example in examples]) for key in examples[0]}
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("way", ["optimizers", "optimizer_cls_and_kwargs"])
@pytest.mark.parametrize("kind", [classifier, language_model])
def test_the_policy_sees_the_loss_of_the_whole_step(kind, way, tmp_path):
    policy = acting(controls=("lr",))
    model = model_of(kind)
    options = {"policy": policy, "lr": 0.01, "total_steps": STEPS}
    optimizer = {
        "optimizers": (optimizer_of(model, policy), None),
        "optimizer_cls_and_kwargs": (
            PolicyOptimizer, {"params": trainer_groups(model, 0.1), **options},
        ),
    }  # fmt: skip
    trainer = trainer_of(
        model, arguments(tmp_path), train_dataset=data_of(kind), **{way: optimizer[way]}
    )
    trainer.add_callback(PolicyCallback(trainer))
    trainer.train()
    twin, twin_optimizer = plain_loop(kind, policy)
    assert_close(model, twin)

    logs = [log for log in trainer.state.log_history if "learning_rate" in log]
    assert len(logs) == STEPS // 4
    assert logs[-1]["learning_rate"] == 0.01
    rates = [value for key, value in logs[-1].items() if key.startswith("applied_lr/")]
    assert rates == pytest.approx(twin_optimizer.applied_lrs(), rel=1e-4)
    assert rates[0] != pytest.approx(0.01, rel=1e-2)


def test_trainers_groups_have_its_decay_our_layers_and_muons_matrices():
    model = model_of(classifier)
    optimizer = PolicyOptimizer(trainer_groups(model, 0.1), constant(base="muon"), 0.01, STEPS)
    own = Trainer.get_decay_parameter_names(None, model)
    decays = {
        name: group["weight_decay"]
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert decays == {name: 0.1 * (name in own) for name, _ in model.named_parameters()}
    data = torch.stack([example["input_ids"] for example in data_of(classifier)])
    model(data).logits.sum().backward()
    optimizer.step()
    layers = {key.removeprefix("lr/") for key in optimizer.metrics() if key.startswith("lr/")}
    assert layers == set(layout_of_named(model.named_parameters()).names)
    updated = {p for p in model.parameters() if "momentum_buffer" in optimizer.state[p]}
    assert updated == muon_matrices(model)
    assert model.classifier.weight not in updated
    assert model.bert.embeddings.word_embeddings.weight not in updated


def test_trainers_own_groups_are_warned_of(tmp_path):
    options = {"policy": constant(base="muon"), "lr": 0.01, "total_steps": STEPS}
    trainer = trainer_of(
        model_of(classifier),
        arguments(tmp_path, max_steps=1),
        train_dataset=data_of(classifier),
        optimizer_cls_and_kwargs=(PolicyOptimizer, options),
    )
    with (
        pytest.warns(UserWarning, match="biases are not known to belong to the layers"),
        pytest.warns(UserWarning, match="group 0 does not say whether Muon updates its matrices"),
    ):
        trainer.train()


def test_the_default_decay_of_trainer_is_warned_of(tmp_path):
    model = model_of(classifier)
    trainer = trainer_of(
        model,
        arguments(tmp_path, lr_scheduler_type="linear"),
        train_dataset=data_of(classifier),
        optimizers=(optimizer_of(model, constant(schedule="wsd")), None),
    )
    with pytest.warns(UserWarning, match=r"lr_scheduler_type='constant_with_warmup'"):
        trainer.train()


def test_averaged_weights_are_evaluated_saved_and_left_in_the_model(tmp_path):
    policy = acting(controls=("lr",), average=8.0)
    options = {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 6, "eval_steps": 6}

    def train(resume, model):
        trainer = trainer_of(
            model,
            arguments(tmp_path, **options),
            train_dataset=data_of(classifier),
            eval_dataset=data_of(classifier),
            optimizers=(optimizer_of(model, policy), None),
        )
        trainer.add_callback(PolicyCallback(trainer))
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    model = model_of(classifier)
    trainer = train(False, model)
    twin, optimizer = plain_loop(classifier, policy)
    optimizer.eval()
    assert_close(model, twin)
    evaluated = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert evaluated[-1] == pytest.approx(trainer.evaluate()["eval_loss"])
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-12")
    assert_close(saved, model, tolerance=0.0)
    resumed = model_of(classifier)
    train(str(tmp_path / "checkpoint-6"), resumed)
    assert_close(resumed, model, tolerance=0.0)
