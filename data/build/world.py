"""The invented world behind the training text: hobbies, towns and people.

Every name, place and fact here was made up for this project.  The facts are
fixed by the seed, so a language model can learn them and be right or wrong
about them.  That is what makes perplexity sensitive to model size and to
quantisation error.
"""

import random
from dataclasses import dataclass

# name | verb phrase | tool | material | place | season | result
_HOBBIES = """
woodcarving|carve wood|a sharp knife|lime wood|in the shed|winter|a small wooden bird
pottery|make pots|a turning wheel|red clay|in the workshop|autumn|a round bowl
gardening|grow vegetables|a short spade|rich soil|behind the house|spring|a basket of beans
knitting|knit scarves|a pair of needles|soft wool|by the fire|winter|a warm scarf
baking|bake bread|a wide oven|strong flour|in the kitchen|autumn|a brown loaf
painting|paint landscapes|a fine brush|thick canvas|in the attic|summer|a picture of the hills
bird watching|watch birds|a pair of binoculars|bird seed|at the edge of the forest|spring|a list of rare birds
fishing|catch trout|a long rod|thin line|on the river bank|summer|a fresh supper
sailing|sail small boats|a light boat|strong rope|on the lake|summer|a brown face
chess|play chess|a folding board|carved pieces|at the corner table|winter|a quick mind
cycling|ride old bicycles|a steel bicycle|spare tubes|on the coast road|summer|a pair of strong legs
hiking|walk long paths|a good map|waxed boots|in the mountains|autumn|a head full of views
photography|take photographs|an old camera|black film|in the market square|autumn|an album of faces
bookbinding|bind books|a bone folder|linen thread|at the long bench|winter|a neat notebook
bee keeping|keep bees|a smoke can|clean wax|in the orchard|summer|a jar of honey
candle making|make candles|a copper pot|yellow wax|in the cellar|winter|a tall candle
basket weaving|weave baskets|a bent awl|willow rods|in the barn|spring|a strong basket
quilting|sew quilts|a silver needle|cotton scraps|in the front room|winter|a heavy quilt
origami|fold paper|a flat ruler|square paper|at the desk|spring|a paper crane
calligraphy|write fine letters|a broad pen|black ink|under the lamp|winter|a handsome card
cheese making|make cheese|a large kettle|goat milk|in the dairy|spring|a soft white cheese
star gazing|study the stars|a small telescope|star charts|on the flat roof|winter|a map of the sky
kite flying|fly kites|a wooden reel|thin silk|on the beach|spring|a high red kite
rowing|row on the river|a pair of oars|tar and paint|at the boat house|summer|a straight back
climbing|climb rocks|a strong harness|white chalk|at the old quarry|summer|a firm grip
swimming|swim in cold water|a rubber cap|thick towels|in the bay|summer|a deep sleep
running|run across fields|a plain watch|light shoes|on the forest track|spring|a steady heart
dancing|dance in pairs|a smooth floor|soft shoes|in the village hall|winter|a light step
singing|sing old songs|a tuning fork|printed music|in the small chapel|winter|a clear voice
juggling|juggle clubs|a set of clubs|coloured balls|in the park|summer|a pair of quick hands
cooking|cook new dishes|a heavy pan|fresh herbs|in the kitchen|autumn|a hot dinner
jam making|boil jam|a deep pan|ripe plums|in the back kitchen|autumn|a row of jars
wine making|make fruit wine|a glass jar|wild berries|in the cellar|autumn|a bottle of dark wine
tea tasting|taste teas|a china pot|dried leaves|on the balcony|spring|a calm hour
mushroom picking|pick mushrooms|a curved knife|brown paper bags|in the wet woods|autumn|a rich soup
stamp collecting|collect stamps|a pair of tweezers|clear pockets|at the round table|winter|a full album
coin collecting|collect coins|a strong lens|velvet trays|in the study|winter|a tray of silver
shell collecting|collect shells|a small net|cotton wool|on the long beach|summer|a shelf of shells
model building|build model ships|a tiny saw|thin plywood|in the spare room|winter|a ship in a bottle
clock repair|mend clocks|a fine screwdriver|light oil|at the bright window|winter|a clock that keeps time
radio repair|mend radios|a soldering iron|copper wire|in the garage|autumn|a clear signal
metalwork|forge iron|a round hammer|black iron|at the forge|autumn|a solid hook
glass blowing|blow glass|a steel pipe|melted sand|by the furnace|winter|a blue vase
leather craft|stitch leather|a pointed awl|brown hide|in the workshop|autumn|a wide belt
soap making|make soap|a wooden mould|olive oil|in the wash house|spring|a bar of green soap
felting|felt hats|a barbed needle|raw fleece|in the sun room|winter|a grey hat
embroidery|stitch patterns|a round hoop|bright thread|by the window|winter|a flowered cloth
lace making|make lace|a set of bobbins|white cotton|in the front room|spring|a fine collar
dyeing|dye cloth|a tin bath|onion skins|in the yard|summer|a golden shirt
weaving|weave rugs|a wide loom|striped yarn|in the loft|winter|a striped rug
stone carving|cut letters in stone|a cold chisel|soft limestone|in the open yard|summer|a carved sign
mosaic|set small tiles|a tile cutter|broken plates|on the terrace|summer|a bright table top
drawing|draw faces|a soft pencil|rough paper|in the station cafe|autumn|a full sketchbook
writing|write short stories|a plain notebook|cheap paper|at the library|winter|a story worth telling
reading|read old novels|a good lamp|second-hand books|in the armchair|winter|a wider world
acting|act in plays|a tall mirror|face paint|on the school stage|winter|a loud voice
archery|shoot arrows|a long bow|straw targets|in the lower meadow|summer|a steady arm
skating|skate on the pond|a pair of skates|warm socks|on the ice|winter|a good balance
skiing|ski through the forest|a pair of skis|hard wax|on the north slope|winter|a pair of red cheeks
sledging|build sledges|a hand drill|ash planks|on the hill|winter|a fast sledge
orchid growing|raise orchids|a mist sprayer|pine bark|in the glass house|spring|a white flower
bonsai|train small trees|a pair of scissors|gravel and moss|in the courtyard|spring|a tiny tree
herb growing|grow herbs|a watering can|clay pots|on the window sill|spring|a bunch of mint
rose growing|prune roses|a pair of shears|dark compost|along the garden wall|summer|a bowl of roses
map making|draw maps|a brass compass|tracing paper|at the map table|autumn|a map of the valley
puppetry|carve puppets|a thin file|strings and cloth|behind the curtain|winter|a dancing puppet
lock picking|open old locks|a bent wire|rusty locks|at the bench|autumn|a patient hand
furniture repair|mend chairs|a wooden mallet|hot glue|in the barn|spring|a chair that does not rock
"""

# name | river | dish | weather | sight | known for | market day
_TOWNS = """
Ashelby|the Orrin|leek pie|foggy|a crooked tower|paper|Monday
Brenwick|the Tamble|smoked eel|windy|a stone bridge|rope|Thursday
Carrowmere|the Lune Water|barley soup|rainy|a floating market|reeds|Saturday
Dunmarch|the Skell|mutton stew|cold|a ruined fort|slate|Tuesday
Elverton|the Mirrow|plum cake|mild|a rose garden|perfume|Friday
Farrowby|the Hask|bacon dumplings|damp|a corn mill|flour|Wednesday
Gillhaven|the Sarn|crab salad|stormy|a striped lighthouse|salt|Friday
Hollowden|the Kettle Brook|bean stew|misty|a hidden cave|mushrooms|Monday
Ivelstone|the Grey Ive|rye bread|frosty|a frozen waterfall|granite|Saturday
Jarrowfield|the Pell|potato pancakes|cloudy|a brick chimney|glass|Thursday
Kestermouth|the Wend|fried herring|salty and bright|a long pier|nets|Tuesday
Larkhampton|the Sweet Ennet|honey tart|sunny|an open theatre|violins|Sunday
Marrowgate|the Dour|pumpkin soup|gloomy|an iron gate|locks|Wednesday
Nettlebury|the Thrain|nettle soup|changeable|a clock with one hand|cloth|Monday
Oxmoor|the Broad Fenn|beef pudding|muddy|a wooden cross|leather|Friday
Penhallow|the Tressil|saffron buns|breezy|a tin mine|tin|Saturday
Quillford|the Inkle|goose pie|calm|a printing house|books|Thursday
Ravensby|the Corrie|black pudding|harsh|a tall gallery|coal|Tuesday
Saltmarsh|the Ebbing|mussel broth|hazy|a sunken church|samphire|Sunday
Thornwick|the Bramble|berry crumble|dry|a maze of hedges|jam|Wednesday
Underhill|the Low Marl|turnip mash|shady|a row of cellars|cider|Friday
Velmont|the Azure|cherry dumplings|hot|a marble fountain|wine|Saturday
Wexcombe|the Yarl|cheese toast|fresh|a round chapel|cheese|Monday
Yarrowdale|the Fleet|lamb with mint|snowy|a rope railway|wool|Thursday
Zellersby|the Zann|pepper stew|thundery|a copper dome|bells|Sunday
Amberley Cross|the Goldwater|apple fritters|golden|an old crossroads|amber|Tuesday
Birchover|the Silverlace|birch syrup cake|crisp|a tree house inn|timber|Wednesday
Coldharbour|the Narrow Sound|cod soup|icy|a harbour chain|boats|Saturday
Dovecote|the Plume|pigeon pie|gentle|a tower of doves|feathers|Sunday
Eastwater|the Long Reach|rice pudding|humid|a canal lock|barges|Monday
"""

_WOMEN = """Ada Beth Clara Dora Edith Flora Greta Hanna Irene Julia Karen Linda Marta Nora Olive Paula
Rosa Sarah Tessa Ursula Vera Wilma Yvonne Zoe Agnes Bella Celia Daisy Elsa Freda""".split()
_MEN = """Adam Ben Carl David Edgar Frank George Henry Ivan Jack Karl Leo Martin Neil Oscar Peter
Quentin Robert Simon Tom Ulrich Victor Walter Yusuf Zach Albert Bruno Conrad Dennis Ernest""".split()
_SURNAMES = """Abbot Barlow Crane Dunn Ellery Finch Garrow Hobbs Ingram Jessop Kemp Loftus Marsh Nolan
Osgood Pike Quill Rudd Stone Tanner Upton Vane Webb Yates Archer Brook Carver Dale Eastman Fowler""".split()
_JOBS = """baker nurse teacher carpenter tailor driver plumber farmer doctor postman painter miller
librarian gardener fisher cook engineer clerk shoemaker singer""".split()
_INSTRUMENTS = """violin piano flute guitar trumpet drum harp cello accordion banjo oboe clarinet organ
whistle mandolin""".split()
_FOODS = """onion soup|roast chicken|pear cake|grilled fish|tomato salad|mushroom pie|egg noodles|red cabbage
fried potatoes|pea soup|lemon tart|spinach rolls|rice with lentils|garlic bread|baked apples|walnut bread
carrot stew|blueberry muffins|cucumber sandwiches|pickled herring""".replace("\n", "|").split("|")
_ANIMALS = "cat dog goat parrot rabbit pony tortoise goose hen ferret".split()
_PET_NAMES = """Pepper Button Rusty Misty Bramble Clover Domino Hazel Jasper Nutmeg Patch Sooty Tinker
Velvet Whisky Ziggy Biscuit Comet Dusty Figaro""".split()
_COLOURS = "red blue green yellow brown grey white black orange purple".split()
_VEHICLES = "bus|tram|bicycle|ferry|old van|motorbike|slow train|horse cart".split("|")


@dataclass(frozen=True)
class Hobby:
    name: str
    verb: str
    tool: str
    material: str
    place: str
    season: str
    result: str


@dataclass(frozen=True)
class Town:
    name: str
    river: str
    dish: str
    weather: str
    sight: str
    goods: str
    day: str


@dataclass(frozen=True)
class Person:
    first: str
    last: str
    female: bool
    town: Town
    hobby: Hobby
    job: str
    instrument: str
    food: str
    animal: str
    pet: str
    colour: str
    vehicle: str
    friend: str


@dataclass(frozen=True)
class World:
    hobbies: list
    towns: list
    people: list


def _table(cls, block):
    return [cls(*line.split("|")) for line in block.strip().splitlines()]


def build_world(seed, n_people=200):
    """The fixed world for a seed: all hobbies and towns, and `n_people` people with facts."""
    rng = random.Random(f"world-{seed}")
    hobbies, towns = _table(Hobby, _HOBBIES), _table(Town, _TOWNS)
    names = [(f, s, True) for f in _WOMEN for s in _SURNAMES] + [(f, s, False) for f in _MEN for s in _SURNAMES]
    chosen = rng.sample(names, n_people)
    friends = chosen[:]
    rng.shuffle(friends)
    people = []
    for (first, last, female), friend in zip(chosen, friends):
        if friend[:2] == (first, last):
            friend = chosen[0] if friend != chosen[0] else chosen[1]
        people.append(
            Person(
                first,
                last,
                female,
                rng.choice(towns),
                rng.choice(hobbies),
                rng.choice(_JOBS),
                rng.choice(_INSTRUMENTS),
                rng.choice(_FOODS),
                rng.choice(_ANIMALS),
                rng.choice(_PET_NAMES),
                rng.choice(_COLOURS),
                rng.choice(_VEHICLES),
                f"{friend[0]} {friend[1]}",
            )
        )
    return World(hobbies, towns, people)
