"""Turns boards into Grafana's dashboard JSON through grafana-foundation-sdk (the extra `dashboards`)."""

from __future__ import annotations

import warnings
from typing import Any, Final

from virtpilot.grafana.view import SOURCE_NAME, SOURCE_UID, WIDTH, Board, Note, Panel, Shape, Source, Variable

with warnings.catch_warnings():
    # The library would rather write schema 2, which Grafana 10 and 11 do not read.
    warnings.filterwarnings("ignore", "Prefer using dashboardv2", DeprecationWarning)
    from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, statetimeline, timeseries
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models import common as common_model
    from grafana_foundation_sdk.models import dashboard as model
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

_GUEST_LINK: Final = (
    "/d/virtpilot-guest?var-datasource=${datasource}&var-cluster=${cluster}"
    "&var-guest=${__field.labels.vm}&${__url_time_range}"
)
# What these show is the present, by an instant query: of a range the last value stays long after its host fell silent.
_PRESENT: Final = {Shape.NUMBER, Shape.TEXT, Shape.RANKING}
AnyPanel = timeseries.Panel | stat.Panel | bargauge.Panel | statetimeline.Panel


def render(board: Board) -> str:
    """Return the dashboard's JSON, the same for the same board."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.meaning)
        .tags(["virtpilot"])
        .editable()
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(_siblings())
    )
    for source in board.sources:
        made = made.with_variable(_source_variable(source))
    for note in board.notes:
        made = made.annotation(_note(note))
    for variable in board.variables:
        made = made.with_variable(_variable(variable))
    _lay_out(made, board)
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def _siblings() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("virtpilot").type(model.DashboardLinkType.DASHBOARDS)
    return link.tags(["virtpilot"]).include_vars(True).keep_time(True)


def _lay_out(made: dashboard.Dashboard, board: Board) -> None:
    """Place rows and panels from left to right and down, and number them."""
    y, number = 0, 1
    for section in board.sections:
        row = dashboard.Row(section.title).id(number).grid_pos(model.GridPos(h=1, w=WIDTH, x=0, y=y))
        made.with_row(row)
        y, x, line_height = y + 1, 0, 0
        for panel in section.panels:
            number += 1
            if x + panel.width > WIDTH:
                x, y, line_height = 0, y + line_height, 0
            place = model.GridPos(h=panel.height, w=panel.width, x=x, y=y)
            made.with_panel(_panel(panel).id(number).grid_pos(place))
            x, line_height = x + panel.width, max(line_height, panel.height)
        y, number = y + line_height, number + 1


def _source_variable(source: Source) -> dashboard.DatasourceVariable:
    provisioned = model.VariableOption(text=SOURCE_NAME, value=SOURCE_UID)
    return dashboard.DatasourceVariable(source).label(source.label).type("prometheus").current(provisioned)


def _reference(source: Source) -> common_model.DataSourceRef:
    return common_model.DataSourceRef(type_val="prometheus", uid=f"${{{source}}}")


def _note(note: Note) -> dashboard.AnnotationQuery:
    made = dashboard.AnnotationQuery().name(note.name).datasource(_reference(Source.STORE)).enable(True)
    made.icon_color(note.color).expr(note.query).step("15s").title_format(note.name).text_format(note.text)
    # Grafana reads the query from here or from there, by its version.
    target = prometheus.Dataquery().ref_id("Anno").datasource(_reference(Source.STORE)).expr(note.query)
    return made.target(target.legend_format(note.text).range())


def _variable(variable: Variable) -> dashboard.QueryVariable:
    made = (
        dashboard.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(_reference(variable.source))
        .query(variable.query)
        .definition(variable.query)
        .regex(variable.regex)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )
    if variable.many:
        everything = model.VariableOption(text="All", value="$__all")
        made = made.multi(True).include_all(True).all_value(".+").current(everything)
    return made


def _panel(panel: Panel) -> AnyPanel:
    made: AnyPanel = _SHAPES[panel.shape](panel)
    made.title(panel.title).description(panel.meaning).datasource(_reference(panel.source)).unit(panel.unit)
    made.color_scheme(_color(panel))
    made.thresholds(_thresholds(panel))
    if panel.low is not None:
        made.min(panel.low)
    if panel.high is not None:
        made.max(panel.high)
    if panel.decimals is not None:
        made.decimals(panel.decimals)
    if panel.nothing:
        made.no_value(panel.nothing)
    if panel.names:
        made.mappings([_names(panel)])
    if panel.to_guest:
        made.data_links([dashboard.DashboardLink("Show this guest").url(_GUEST_LINK)])
    for index, (query, legend) in enumerate(panel.queries):
        made.with_target(_target(panel, chr(ord("A") + index), query, legend))
    return made


def _target(panel: Panel, name: str, query: str, legend: str) -> prometheus.Dataquery:
    made = prometheus.Dataquery().ref_id(name).datasource(_reference(panel.source)).expr(query)
    made.legend_format(legend or "__auto").format(PromQueryFormat.TIME_SERIES)
    return made.instant() if panel.shape in _PRESENT else made.range()


def _color(panel: Panel) -> dashboard.FieldColor:
    graded = panel.shape in {Shape.NUMBER, Shape.RANKING} and (panel.warn is not None or panel.bad is not None)
    if graded or panel.shape is Shape.TIMELINE:
        return dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS)
    if panel.shape in {Shape.NUMBER, Shape.TEXT, Shape.RANKING}:
        return dashboard.FieldColor().mode(model.FieldColorModeId.FIXED).fixed_color("blue")
    return dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC)


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    steps = [model.Threshold(value=None, color="green")]
    if panel.warn is not None:
        steps.append(model.Threshold(value=panel.warn, color="yellow"))
    if panel.bad is not None:
        steps.append(model.Threshold(value=panel.bad, color="red"))
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def _names(panel: Panel) -> model.ValueMap:
    options = {
        str(value): model.ValueMappingResult(text=word, color=color, index=index)
        for index, (value, word, color) in enumerate(panel.names)
    }
    return model.ValueMap(options=options)


def _graph(panel: Panel) -> timeseries.Panel:
    made = timeseries.Panel().fill_opacity(8).line_width(1).show_points(common_model.VisibilityMode.AUTO)
    made.tooltip(common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI))
    made.legend(common.VizLegendOptions().show_legend(True).display_mode(common_model.LegendDisplayMode.LIST))
    if panel.warn is not None or panel.bad is not None:
        made.thresholds_style(common.GraphThresholdsStyleConfig().mode(common_model.GraphThresholdsStyleMode.DASHED))
    return made


def _stack(panel: Panel) -> timeseries.Panel:
    normal = common.StackingConfig().mode(common_model.StackingMode.NORMAL)
    return _graph(panel).stacking(normal).fill_opacity(40)


def _number(_panel: Panel) -> stat.Panel:
    return stat.Panel().reduce_options(_last()).graph_mode(common_model.BigValueGraphMode.NONE)


def _text(_panel: Panel) -> stat.Panel:
    made = stat.Panel().reduce_options(_last()).graph_mode(common_model.BigValueGraphMode.NONE)
    return made.text_mode(common_model.BigValueTextMode.NAME)


def _ranking(_panel: Panel) -> bargauge.Panel:
    made = bargauge.Panel().reduce_options(_last()).orientation(common_model.VizOrientation.HORIZONTAL)
    return made.display_mode(common_model.BarGaugeDisplayMode.BASIC)


def _timeline(_panel: Panel) -> statetimeline.Panel:
    return statetimeline.Panel().merge_values(True).show_value(common_model.VisibilityMode.AUTO).fill_opacity(70)


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


_SHAPES: Final[dict[Shape, Any]] = {
    Shape.GRAPH: _graph,
    Shape.STACK: _stack,
    Shape.NUMBER: _number,
    Shape.TEXT: _text,
    Shape.RANKING: _ranking,
    Shape.TIMELINE: _timeline,
}
