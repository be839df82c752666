"""Workers on Kubernetes: the manifest of a Job of `study worker`s."""

from __future__ import annotations

import re
from typing import Any

import yaml

from study.place import Place
from study.store.locations import Local, Location
from study.terms import STORAGE_VARIABLE
from study.workers.signals import GRACE
from vae.errors import UserError

#: What a label or a Secret's or claim's name may be (RFC 1123), and a key in a Secret.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_KEY = re.compile(r"[-._A-Za-z0-9]+")


def manifest(
    place: Place, name: str, *, image: str, secret: str, claim: str | None, gpus: int = 0, tries: int = 6
) -> str:
    """A Job of `place.workers` pods, each a worker of NAME, as YAML.

    `image` has this program as `vae-study`. The database's URL stays in the Secret "NAME/KEY" named by `secret`; the
    persistent volume `claim` is mounted at `place.artifacts` where that is a folder. Raises UserError for what can't
    be."""
    holder, _, key = secret.partition("/")
    if not _NAME.fullmatch(holder) or not _KEY.fullmatch(key):
        raise UserError(
            f"--secret {secret}: write NAME/KEY, the Secret and its key, as in vae-study/storage."
        )
    mounted = _volume(place.artifacts, claim)
    if place.workers < 1:
        raise UserError("--workers 0: a Job needs at least one.")
    label = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:40].strip("-") or "experiment"
    limits: dict[str, Any] = {"nvidia.com/gpu": gpus} if gpus else {}
    worker: dict[str, Any] = {
        "name": "worker",
        "image": image,
        "command": ["vae-study", "worker"],
        # Kubernetes puts variables in the place of $(NAME), and reads $$ as $.
        "args": [
            argument.replace("$", "$$")
            for argument in ("--name", name, "--threads", str(place.threads), *place.for_worker())
        ],
        "env": [{"name": STORAGE_VARIABLE, "valueFrom": {"secretKeyRef": {"name": holder, "key": key}}}],
        "resources": {
            "requests": {"cpu": str(place.threads)},
            **({"limits": limits} if limits else {}),
        },
        **({"volumeMounts": [{"name": "artifacts", "mountPath": str(place.artifacts)}]} if mounted else {}),
    }
    labels = {"app.kubernetes.io/name": "vae-study", "app.kubernetes.io/instance": label}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"vae-study-{label}", "labels": labels},
        "spec": {
            # Each pod ends by itself once nothing is left to do.
            "parallelism": place.workers,
            "completions": place.workers,
            "backoffLimit": tries,
            "template": {
                "metadata": {"labels": dict(labels)},
                "spec": {
                    "restartPolicy": "Never",
                    # SIGTERM makes a worker save its trial and give it back.
                    "terminationGracePeriodSeconds": int(GRACE),
                    "containers": [worker],
                    **({"volumes": [{"name": "artifacts", **mounted}]} if mounted else {}),
                },
            },
        },
    }
    return str(yaml.safe_dump(job, sort_keys=False))


def _volume(artifacts: Location, claim: str | None) -> dict[str, Any]:
    """What a folder for states and models is mounted from; nothing for a URL, which needs none. Raises UserError."""
    if not isinstance(artifacts, Local):
        if claim is not None:
            raise UserError(f"--claim {claim} goes with a folder: --artifacts {artifacts} needs no volume.")
        return {}
    if claim is None:
        raise UserError(
            "--claim: name the persistent volume claim for states and models, which are lost with their pod otherwise."
        )
    if not _NAME.fullmatch(claim):
        raise UserError(f"--claim {claim} is no name of a persistent volume claim.")
    if not artifacts.path.is_absolute():
        raise UserError(f"--artifacts {artifacts}: where the claim is mounted must begin with '/'.")
    return {"persistentVolumeClaim": {"claimName": claim}}
