"""Figures for notebooks and the report. Every function takes data and returns a Figure; only this package draws."""

from cassl_lib.plotting.charts import *  # noqa: F403
from cassl_lib.plotting.images import *  # noqa: F403
