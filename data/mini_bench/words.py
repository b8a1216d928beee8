"""Names and things that several topics draw from."""

PEOPLE = """Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karla Leo Mara Nils Olga Paul Rosa
Sam Tina Viktor Wanda Yara Tom Lina Max Nora Oskar Petra Ralf Sofia""".split()

SURNAMES = """Adler Berg Carver Dorn Ellis Fisk Grant Hale Ivers Keller Lang Moss Novak Oakes Pike
Quill Reed Stone Thorn Vance West York""".split()

TOWNS = """Ashford Birkdale Coldwater Dunmore Elmstead Fairhaven Greywood Hartwell Ironbridge
Kingsport Lakeview Millbrook Northgate Oakridge Pinehurst Redcliff Silverton Thornbury Westfield
Winslow""".split()

MONTHS = """January February March April May June July August September October November
December""".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

FRUIT = "apple pear plum peach lemon orange melon cherry".split()

GOODS = """pencil notebook candle basket stamp marble button ribbon cookie balloon sticker postcard
flower shell bead ticket""".split()


def plural(noun):
    """Regular English plural: peach -> peaches, cherry -> cherries, pear -> pears."""
    if noun.endswith(("ch", "sh", "s", "x")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def full_name(rng):
    """A random first name and surname."""
    return f"{rng.choice(PEOPLE)} {rng.choice(SURNAMES)}"
