"""Our tables beside Optuna's, in the same database: what each trial was and its whole learning curve.

Times are unix seconds by the database's own clock, losses nats per example, NaN is stored as NULL.
Optuna reuses trial ids after a deletion, so our rows go with Optuna's: by triggers on SQLite (Optuna's
connections don't enforce foreign keys there), by cascading foreign keys and a trigger on PostgreSQL.
"""

from __future__ import annotations

from typing import Any

from optuna.trial import TrialState
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Double,
    Enum,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

#: Raise it, and add the step in `install`, when a table changes.
SCHEMA_VERSION = 1

metadata = MetaData()

study_schema = Table("study_schema", metadata, Column("version", Integer, nullable=False))

experiment = Table(
    "experiment",
    metadata,
    Column("name", String(256), primary_key=True),
    Column("spec", Text, nullable=False),  # JSON
    Column("created", Double, nullable=False),
)

#: One row while somebody plans or enqueues; a lease, so a dead holder doesn't block anybody.
setup_lease = Table(
    "setup_lease",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("owner", String(256), nullable=False),
    Column("lease_expires", Double, nullable=False),
)

throughput = Table(
    "throughput",
    metadata,
    Column("experiment", String(256), primary_key=True),
    Column("arm", String(256), primary_key=True),
    Column("pair", Integer, primary_key=True, autoincrement=False),
    Column("examples_per_second", Double, nullable=False),
    Column("baseline_examples_per_second", Double, nullable=False),
    Column("cold_start_seconds", Double),
)

trial_run = Table(
    "trial_run",
    metadata,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),  # Optuna's trials.trial_id
    Column("experiment", String(256), nullable=False),
    Column("arm", String(256)),
    Column("block", Integer),
    Column("phase", String(64)),
    Column("number", Integer, nullable=False),  # Optuna's, counted within its study
    Column("seed", BigInteger),
    Column("recipe", Text),  # JSON
    Column("data_fingerprint", String(64)),
    Column("device", String(256)),
    Column("host", String(256)),
    Column("versions", Text),  # JSON
    # The lease: who runs it, under which attempt (the fencing token), and how many attempts died since the
    # curve last got further than `furthest`, the highest evaluation ever recorded.
    Column("owner", String(256)),
    Column("attempt", Integer, nullable=False),
    Column("died", Integer, nullable=False),
    Column("furthest", Integer, nullable=False),
    Column("lease_expires", Double),
    Column("started", Double),
    Column("finished", Double),
    # The result; outcome is NULL until the trial is finished.
    Column("outcome", String(64)),
    Column("state", String(16)),  # the name of Optuna's state to tell
    Column("value", Double),
    Column("reason", Text),
    Column("target", Double),
    Column("hit", Boolean),
    Column("examples_to_target", Double),
    Column("score", Double),
    Column("valid_loss", Double),
    Column("best_valid_loss", Double),
    Column("test_loss", Double),
    Column("examples", BigInteger),
    Column("steps", BigInteger),
    Column("train_seconds", Double),
    Column("wall_seconds", Double),
)

curve = Table(
    "curve",
    metadata,
    Column("trial_id", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),  # of the evaluation
    Column("examples", BigInteger, nullable=False),
    Column("steps", BigInteger, nullable=False),
    Column("train_seconds", Double),
    Column("train_loss", Double),
    Column("valid_loss", Double),
    Column("rate", Double),
    Column("distortion", Double),
    Column("active_units", Integer),
    Column("lr", Double),
    Column("beta", Double),
    Column("grad_norm", Double),
)

# Over our own tables only: a view over Optuna's would block the upgrades of its schema.
_VIEW = """
CREATE VIEW learning_curve AS
SELECT r.experiment, r.arm, r.block, r.phase, r.seed, c.trial_id, r.number AS trial, c.number,
       c.examples, c.steps, c.train_seconds, c.train_loss, c.valid_loss, c.rate, c.distortion,
       c.active_units, c.lr, c.beta, c.grad_norm
FROM curve AS c JOIN trial_run AS r ON r.trial_id = c.trial_id
"""

#: The columns of the view `learning_curve`.
learning_curve = Table(
    "learning_curve",
    MetaData(),
    *(Column(name, trial_run.c[name].type) for name in ("experiment", "arm", "block", "phase", "seed")),
    Column("trial_id", Integer),
    Column("trial", Integer),
    *(Column(column.name, column.type) for column in curve.c if column.name != "trial_id"),
)

_STUDY_DELETED = """
    DELETE FROM throughput
     WHERE OLD.study_name = experiment || '/' || arm
        OR substr(OLD.study_name, 1, length(experiment) + length(arm) + 2) = experiment || '/' || arm || '/';
    DELETE FROM experiment
     WHERE substr(OLD.study_name, 1, length(name) + 1) = name || '/'
       AND NOT EXISTS (SELECT 1 FROM studies WHERE substr(study_name, 1, length(name) + 1) = name || '/');
"""

_SQLITE_TRIGGERS = (
    """
CREATE TRIGGER IF NOT EXISTS study_trial_deleted AFTER DELETE ON trials BEGIN
    DELETE FROM curve WHERE trial_id = OLD.trial_id;
    DELETE FROM trial_run WHERE trial_id = OLD.trial_id;
END
""",
    f"CREATE TRIGGER IF NOT EXISTS study_study_deleted AFTER DELETE ON studies BEGIN {_STUDY_DELETED} END",
)

# The curve hangs on trial_run, not on trials: a worker that writes rows holds its own trial_run row, so a
# deletion waits for it instead of meeting it in a deadlock.
_POSTGRESQL_RULES = (
    "ALTER TABLE trial_run ADD CONSTRAINT trial_run_trial FOREIGN KEY (trial_id)"
    " REFERENCES trials (trial_id) ON DELETE CASCADE",
    "ALTER TABLE curve ADD CONSTRAINT curve_trial_run FOREIGN KEY (trial_id)"
    " REFERENCES trial_run (trial_id) ON DELETE CASCADE",
    f"CREATE FUNCTION study_study_deleted() RETURNS trigger AS $$ BEGIN {_STUDY_DELETED} RETURN NULL; END $$"
    " LANGUAGE plpgsql",
    "CREATE TRIGGER study_study_deleted AFTER DELETE ON studies"
    " FOR EACH ROW EXECUTE FUNCTION study_study_deleted()",
)

# Optuna's tables, as far as we read them. They are written through Optuna's storage only.
#: Optuna's own name of the version of its tables that the ones below are of.
OPTUNA_REVISION = "v3.2.0.a"

_optuna = MetaData()
alembic_version = Table("alembic_version", _optuna, Column("version_num", String))
studies = Table(
    "studies", _optuna, Column("study_id", Integer, primary_key=True), Column("study_name", String)
)
trials = Table(
    "trials",
    _optuna,
    Column("trial_id", Integer, primary_key=True),
    Column("number", Integer),
    Column("study_id", Integer),
    Column("state", Enum(TrialState, name="trialstate")),
    Column("datetime_start", DateTime),
    Column("datetime_complete", DateTime),
)
trial_params = Table(
    "trial_params",
    _optuna,
    Column("trial_id", Integer),
    Column("param_id", Integer),
    Column("param_name", String),
    Column("param_value", Double),
    Column("distribution_json", Text),
)
trial_user_attributes = Table(
    "trial_user_attributes",
    _optuna,
    Column("trial_id", Integer),
    Column("key", String),
    Column("value_json", Text),
)


def of_name(name: str) -> ColumnElement[bool]:
    """Optuna's studies of NAME: 'NAME/...'. Not LIKE, which ignores case on SQLite."""
    return func.substr(studies.c.study_name, 1, len(name) + 1) == f"{name}/"


class unix_now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function it is
    """Seconds since 1970 by the database's clock, so that workers on several machines share one."""

    type = Double()
    inherit_cache = True


@compiles(unix_now, "sqlite")
def _sqlite_now(element: unix_now, compiler: Any, **options: Any) -> str:  # noqa: ARG001
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(unix_now, "postgresql")
def _postgresql_now(element: unix_now, compiler: Any, **options: Any) -> str:  # noqa: ARG001
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


def install(connection: Connection) -> None:
    """Create what is missing of ours, in the caller's transaction; Optuna's tables must exist.

    Idempotent. Also drops rows whose trial is gone: `optuna storage upgrade` rebuilds tables on SQLite
    and loses the triggers, so a study may have been deleted without them.
    """
    if not inspect(connection).has_table(study_schema.name):
        metadata.create_all(connection)
        connection.execute(text(_VIEW))
        if connection.dialect.name == "postgresql":
            for rule in _POSTGRESQL_RULES:
                connection.execute(text(rule))
        connection.execute(study_schema.insert().values(version=SCHEMA_VERSION))
    if connection.dialect.name == "sqlite":
        for trigger in _SQLITE_TRIGGERS:
            connection.execute(text(trigger))
        alive = select(trials.c.trial_id)
        connection.execute(curve.delete().where(curve.c.trial_id.not_in(alive)))
        connection.execute(trial_run.delete().where(trial_run.c.trial_id.not_in(alive)))


def stored_version(connection: Connection) -> int | None:
    """The version of our tables in this database; None where there are none."""
    if not inspect(connection).has_table(study_schema.name):
        return None
    return connection.execute(select(func.max(study_schema.c.version))).scalar()


def knows_optunas_tables(connection: Connection) -> bool:
    """Whether Optuna's tables, which must be there, are those that we read."""
    return list(connection.execute(select(alembic_version.c.version_num)).scalars()) == [OPTUNA_REVISION]


def has_triggers(connection: Connection) -> bool:
    """Whether a deletion in Optuna's tables reaches ours; an upgrade of Optuna's tables on SQLite undoes it."""
    if connection.dialect.name != "sqlite":
        return True
    found = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars()
    return {"study_trial_deleted", "study_study_deleted"} <= set(found)
