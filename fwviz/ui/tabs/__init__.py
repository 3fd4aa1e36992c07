"""The tabs of the page, one file each: which pictures, which controls. The order is that on the page."""

from __future__ import annotations

from fwviz.ui.pictures import Picture, Tab
from fwviz.ui.state import TabId
from fwviz.ui.tabs.landscape import LANDSCAPE
from fwviz.ui.tabs.merge import MERGE
from fwviz.ui.tabs.relevance import RELEVANCE
from fwviz.ui.tabs.scaling import SCALING
from fwviz.ui.tabs.spectrum import SPECTRUM
from fwviz.ui.tabs.weights import WEIGHTS

TABS: dict[TabId, Tab] = {tab.id: tab for tab in (RELEVANCE, SPECTRUM, WEIGHTS, LANDSCAPE, MERGE, SCALING)}
PICTURES: dict[str, Picture] = {picture.chart: picture for tab in TABS.values() for picture in tab.pictures}
