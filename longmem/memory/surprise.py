class SurpriseBoundaries:
    pass


class SurpriseMark:
    pass
