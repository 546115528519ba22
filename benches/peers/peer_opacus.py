"""DP-SGD by Opacus: softmax regression on the given features, in an environment of its own (see `harness.Worker`)."""

import warnings

import numpy as np


def prepare(x, y, x_test, epsilon, delta, seed, epochs, batch, rate, clip):
    import torch
    from opacus import PrivacyEngine

    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    data = torch.utils.data.TensorDataset(
        torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))
    )
    held_out = torch.from_numpy(x_test.astype(np.float32))
    classes = int(y.max()) + 1

    def work():
        torch.manual_seed(int(seed))
        model = torch.nn.Linear(x.shape[1], classes)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=float(rate), momentum=0.9)
        loader = torch.utils.data.DataLoader(data, batch_size=int(batch))
        # Rényi accounting: the default, PRV, reads its tables from a package resource that newer Pythons lack.
        engine = PrivacyEngine(accountant="rdp")
        model, optimizer, loader = engine.make_private_with_epsilon(
            module=model, optimizer=optimizer, data_loader=loader, epochs=int(epochs), target_epsilon=float(epsilon),
            target_delta=float(delta), max_grad_norm=float(clip),
        )  # fmt: skip
        for _ in range(int(epochs)):
            for rows, labels in loader:
                optimizer.zero_grad()
                if len(rows):
                    torch.nn.functional.cross_entropy(model(rows), labels).backward()
                    optimizer.step()
        with torch.no_grad():
            return model(held_out).argmax(1).numpy()

    return work
