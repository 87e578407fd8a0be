"""The page of a plan, `plan.html`: what is asked, what is promised, what it costs and when."""

from llem.report.plan.page import render_plan_page
from llem.report.plan.study import render_study_page, times_of_study
from llem.report.plan.timeline import Timeline, timeline, times_of

__all__ = [
    "Timeline",
    "render_plan_page",
    "render_study_page",
    "timeline",
    "times_of",
    "times_of_study",
]
