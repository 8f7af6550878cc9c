"""The library's own Trainer on our models, without our trainer."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from modeling_svitt_ego import SViTTEgoForPreTraining, SViTTEgoForVideoClassification
from tests.helpers.tiny_model import STILL, tiny_batch, tiny_clips, tiny_model


class Rows(torch.utils.data.Dataset):
    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        return {key: value[index] for key, value in self.columns.items()}


def pretraining_rows(count=12):
    return Rows({**tiny_batch(count), "return_loss": torch.ones(count, dtype=torch.bool)})


def classification_rows(count=12):
    return Rows({"pixel_values_videos": tiny_clips(count), "labels": torch.arange(count) % 3})


def collate(rows):
    batch = torch.utils.data.default_collate(rows)
    if "return_loss" in batch:
        batch["return_loss"] = True
    return batch


class Gradients(Trainer):
    """The stock Trainer, noting the gradient of each optimizer step."""

    steps: list

    def create_optimizer(self, *args, **kwargs):
        optimizer, self.steps = super().create_optimizer(*args, **kwargs), []
        parameters = dict(self.model.named_parameters())
        optimizer.register_step_pre_hook(
            lambda *_: self.steps.append({n: p.grad.clone() for n, p in parameters.items() if p.grad is not None})
        )
        return optimizer


def train(model, rows, folder, batch_size, accumulation, steps=3):
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=1e-3,
        max_grad_norm=0.0,
        weight_decay=0.0,
        report_to=[],
        remove_unused_columns=False,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Gradients(model, arguments, train_dataset=rows, data_collator=collate)
    trainer.get_train_dataloader = lambda: trainer.accelerator.prepare(
        torch.utils.data.DataLoader(rows, batch_size=batch_size, collate_fn=collate)
    )
    return trainer, trainer.train()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("cls", [SViTTEgoForPreTraining, SViTTEgoForVideoClassification], ids=lambda c: c.__name__)
def test_the_stock_trainer_trains(cls, accumulation, tmp_path):
    """Catches a forward signature that the Trainer cannot call, and a step that changes nothing."""
    model = tiny_model(cls, num_labels=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = pretraining_rows() if cls is SViTTEgoForPreTraining else classification_rows()
    trainer, result = train(model, rows, tmp_path, 4, accumulation)
    assert result.global_step == 3 and torch.tensor(result.training_loss).isfinite()
    still = [name for name, p in model.named_parameters() if p.requires_grad and torch.equal(before[name], p)]
    assert not still
    trainer.save_model(tmp_path / "saved")
    assert type(cls.from_pretrained(tmp_path / "saved")) is cls


def test_gradient_accumulation_does_not_double_the_gradient(tmp_path):
    """Catches the Trainer rescaling by a count of labels: gradients twice too large at accumulation 2."""
    rows = classification_rows(4)
    fields = dict(STILL, num_labels=3)
    whole, _ = train(tiny_model(SViTTEgoForVideoClassification, **fields), rows, tmp_path / "1", 4, 1, steps=1)
    halves, _ = train(tiny_model(SViTTEgoForVideoClassification, **fields), rows, tmp_path / "2", 2, 2, steps=1)
    for name, gradient in whole.steps[0].items():
        torch.testing.assert_close(halves.steps[0][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_accumulated_contrastive_gradients_are_the_mean_of_the_batches(tmp_path):
    """Catches the same rescaling in pretraining, where halves of a batch are batches of their own."""
    rows = pretraining_rows(4)
    fields = dict(STILL, vtm_weight=0, mlm_weight=0)
    halves, _ = train(tiny_model(**fields), rows, tmp_path, 2, 2, steps=1)
    model = tiny_model(**fields).train()
    for half in (slice(0, 2), slice(2, 4)):
        batch = {key: value[half] for key, value in rows.columns.items() if key != "return_loss"}
        (model(**batch, return_loss=True).loss / 2).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(halves.steps[0][name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
