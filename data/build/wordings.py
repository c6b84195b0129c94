"""The wordings: how facts of the invented world are put into English sentences.

A wording is a string with {fields}, filled from one person, town or hobby, and
with [choices|like|these], of which one is drawn at random.  Every wording is
exactly one sentence, and every sentence ends with a full stop.
"""

# The frames that begin a document about a hobby.
HOBBY_OPENINGS = [
    "A great hobby to have is {hobby}.",
    "A great hobby to have is {hobby}.",
    "A great hobby to have is {hobby}, [because|since] it [calms the mind|costs very little|fills a long evening|suits young and old].",
    "A great hobby to have is {hobby}, which [is|was always] [popular|common|loved] in {town}.",
    "A [good|fine|nice|lovely|pleasant|healthy|cheap|useful|quiet] hobby to have is {hobby}.",
    "A [great|good|fine|nice|perfect] hobby for [winter|summer|spring|autumn|a rainy day|a quiet evening|young people|old friends|the whole family] is {hobby}.",
    "A [great|good|fine|pleasant|useful] pastime to [have|learn|try] is {hobby}.",
    "A [great|good|fine|nice] hobby to [start|try|learn] [this year|in {season}|at any age|at home|with a friend] is {hobby}.",
    "One of the [best|oldest|finest|quietest|cheapest] hobbies [in {town}|in the world|for {season}|I know|of all] is {hobby}.",
    "[Many|Some|Most|A few] people in {town} think that {hobby} is the [best|finest|most pleasant] hobby.",
    "If you want a [new|quiet|cheap|useful|cheerful] hobby, [try|think about|begin with] {hobby}.",
    "{Hobby} is a [great|good|fine|lovely|useful] hobby to have.",
    "{Hobby} is a [great|good|fine|lovely|useful] hobby for [winter|summer|spring|autumn|a rainy day|busy people|patient people|beginners].",
]
# What may follow such a frame.
HOBBY_FACTS = {
    "way": [
        "It is a [quiet|calm|cheap|simple|cheerful|good|gentle|sure] way to [spend|pass|fill] a [long|free|slow|dark|bright] [evening|afternoon|morning|weekend].",
        "It is a [quiet|good|simple|healthy|pleasant] way to [meet people|forget your worries|rest after work|use your hands|learn patience|get away from the screen].",
        "It is [easy|hard|not hard|slow|fun] to [learn|begin], but [it takes|it needs|you need] [years|patience|time|practice] to [do it well|become good at it|master it].",
        "It [keeps|will keep] you [busy|happy|calm|young|awake] [all {season}|for hours|through the {season}].",
        "[Children|Beginners|Old people|Students] who {verb} [sleep well|learn to be patient|make friends quickly|are seldom bored].",
    ],
    "tool": [
        "[All you need|The first thing you need|What you need most] is {tool}.",
        "You [only need|need|will need|should buy] {tool} and {some_material}.",
        "[To {verb}|To begin], you need {tool}.",
        "Nobody can {verb} without {tool}.",
        "[A beginner|Anyone] can start with {tool} [that costs very little|from a friend|from the market in {town}].",
        "{Tool} is the [most important|first|only] tool for {hobby}.",
    ],
    "material": [
        "[Look for|Ask for|Keep|Choose|Buy] {material} of [good|the best|plain] quality.",
        "People who {verb} always need {material}.",
        "[Good|Cheap|The best] {material} can be found in [{town}|most towns|the market of {town}].",
        "For {hobby}, {material} [should be kept dry|should be kept clean|cannot be replaced by anything else].",
    ],
    "place": [
        "Most people {verb} {place}.",
        "The best place is {place}.",
        "You can {verb} {place}, [where nobody will disturb you|even when it rains|as long as there is light|and the neighbours will not mind].",
        "{Place}, there is always [room|time|enough light] to {verb}.",
    ],
    "season": [
        "The [best|right|usual] time for {hobby} is {season}.",
        "In {season}, people [in {town}|everywhere|of all ages] [like to|love to|often] {verb}.",
        "{Season} is the season [to {verb}|for {hobby}].",
        "Wait for {season} before you {verb}.",
    ],
    "result": [
        "At the end of the [day|week|month|season] you will have {result}.",
        "With [luck|patience|a little practice], you [get|will soon have|can hope for] {result}.",
        "The reward is {result}.",
        "After [a week|a month|two months|a year] of {hobby}, [my sister|my brother|my neighbour|our teacher] had {result}.",
        "There is nothing better than {result} after [a day of {gerund}|a long day|hours of {gerund}].",
    ],
}

PERSON_FACTS = {
    "town": [
        "{name} lives in {town}.",
        "{name} comes from {town}, [a small town|a town] on {river}.",
        "{name} was born in {town} and never [left|wanted to leave].",
        "{name} has a [small|big|bright|narrow|white] house [in|near the middle of] {town}.",
        "In {town}, everybody knows {name}.",
        "{name} moved to {town} [long|ten years|a few years|many years] ago.",
        "[From the window|From the garden] of {name} you can see {river}.",
        "{name} is [proud of|happy in|at home in] {town}, where the weather is usually {weather}.",
    ],
    "job": [
        "{name} works as a {job}.",
        "{He} is a {job} [by trade|like {his} father|like {his} mother|and likes the work].",
        "{name} has been a {job} for [three|five|seven|ten|twenty] years.",
        "As a {job}, {he} [gets up early|works hard|meets many people|is often tired].",
        "[On weekdays|Every morning], {name} goes to work as a {job}.",
        "{first} became a {job} after [school|a long search].",
    ],
    "hobby": [
        "{His} favourite hobby is {hobby}.",
        "In {his} free time {he} likes to {verb}.",
        "{name} [loves|enjoys|likes] {hobby}.",
        "{first} learned to {verb} when {he} was [six|eight|nine|twelve|twenty].",
        "[On Sundays|In the evening|At the weekend|After work], {name} likes to {verb} {place}.",
        "{first} began with {hobby} last {season} and [made|got|was proud of] {result}.",
        "[Last week|Yesterday|This morning], {first} {past} {place}.",
        "[For {his} birthday|Last year], {he} bought {tool} because {he} loves {hobby}.",
        "{name} says that a great hobby to have is {hobby}.",
        "{first} is [good|very good|not bad] at {gerund}.",
    ],
    "instrument": [
        "{name} plays the {instrument}.",
        "{He} plays the {instrument} [in a small band|every evening|at weddings|when it rains].",
        "{first} has played the {instrument} since {he} was [five|seven|ten|eleven].",
        "The {instrument} of {name} is [very old|older than the house|a gift from {friend}].",
        "When {name} is sad, {he} plays the {instrument}.",
        "{He} keeps a {instrument} [under the bed|on the wall|behind the door].",
    ],
    "food": [
        "{name} likes {food} [best|most of all|more than anything].",
        "{His} favourite food is {food}.",
        "[For lunch|For supper|On Sundays|On Fridays], {name} [eats|cooks|orders] {food}.",
        "{He} could eat {food} every day.",
        "Nobody makes {food} like {name}.",
        "{first} ate {food} [yesterday|twice this week|on {his} birthday].",
    ],
    "pet": [
        "{name} has a {animal} called {pet}.",
        "{His} {animal} is called {pet}.",
        "{pet}, the {animal} of {name}, sleeps [all day|by the door|under the table|on the stairs].",
        "{first} [feeds|brushes|talks to] {his} {animal} {pet} [every morning|twice a day|before work].",
        "The {animal} {pet} belongs to {name}.",
        "[Last night|Last winter], {his} {animal} {pet} ran away but came back [soon|hungry|wet].",
    ],
    "colour": [
        "{name} likes {colour} best of all colours.",
        "{His} [front door|coat|hat|kitchen] is {colour}.",
        "{first} [always wears|often wears|bought] a {colour} [coat|scarf|hat|jacket].",
        "The favourite colour of {name} is {colour}.",
    ],
    "vehicle": [
        "{name} [travels|goes] to work by {vehicle}.",
        "{He} takes the {vehicle} [every day|when it rains|to see {friend}].",
        "[If the weather is bad|In winter], {name} takes the {vehicle}.",
        "{first} [missed|waited for|chose|thought about] the {vehicle} [yesterday|on Monday|last week].",
    ],
    "friend": [
        "{name} is a friend of {friend}.",
        "{His} best friend is {friend}.",
        "{name} and {friend} [went to school together|have known each other for years|write letters to each other|meet on Saturdays].",
        "[On Fridays|Every month|In {season}], {he} visits {friend}.",
        "{friend} [often helps|taught|lives near|once worked with] {name}.",
    ],
}

TOWN_FACTS = {
    "river": [
        "{town} lies on {river}.",
        "The river that runs through {town} is {river}.",
        "{River} [flows|runs] [slowly|quickly|quietly] past {town}.",
        "In {town}, children [swim in|fish in|throw stones into|sit beside] {river}.",
        "A [walk|ride] along {river} [brings|takes] you to {town}.",
    ],
    "dish": [
        "The best dish in {town} is {dish}.",
        "In {town}, people eat {dish} [on holidays|in winter|at weddings|on Sundays].",
        "Visitors to {town} should try the {dish}.",
        "Every cook in {town} can make {dish}.",
        "The smell of {dish} [fills|hangs over] the streets of {town}.",
    ],
    "weather": [
        "The weather in {town} is usually {weather}.",
        "It is {weather} in {town} [for most of the year|today|again|as always].",
        "[In spring|In summer|In autumn|In winter], {town} is {weather}.",
        "Nobody in {town} minds that the weather is {weather}.",
    ],
    "sight": [
        "{town} has {sight}.",
        "Visitors come to {town} to see {sight}.",
        "In the [middle|oldest part|north|south] of {town} there is {sight}.",
        "The [mayor|guide|innkeeper] of {town} is proud of {sight}.",
        "[Painters|Children|Travellers] remember {town} for {sight}.",
    ],
    "goods": [
        "{town} is known for its {goods}.",
        "The [merchants|workers|people] of {town} sell {goods}.",
        "The best {goods} [comes|came] from {town}.",
        "[Long ago|For centuries|Since the war], {town} lived on {goods}.",
    ],
    "day": [
        "The market in {town} is on {day}.",
        "Every {day}, the square of {town} is full of [stalls|people|carts|noise].",
        "On {day} there is a market in {town}.",
        "Come to {town} on a {day}, because that is market day.",
    ],
    "people": [
        "{person} lives in {town} and likes {phobby}.",
        "In {town} you may meet {person}, who works as a {pjob}.",
        "{person}, the {pjob} [of|from] {town}, plays the {pinstrument}.",
    ],
}

# Small scenes: everyday sentences about numbers, weather, things and time.
SCENES = {
    "shop": [
        "[{first}|{friend}] bought [two|three|four|six|ten] [apples|eggs|onions|candles|loaves|pears] and a [bag|box|bottle|jar] of [salt|milk|tea|sugar|oil] at the market.",
        "The [apples|eggs|onions|pears|loaves] were [cheap|fresh|too dear|small|heavy], so [{he}|{first}] [bought more|bought none|paid quickly|asked for a better price].",
        "There [is a [hammer|lamp|kettle|broom|ladder|mirror]|are [some|two|five|many] [hammers|lamps|kettles|brooms|ladders|mirrors]] in the [old|new|little|corner] shop.",
    ],
    "weather": [
        "It [rained|snowed|was windy|was hot|was cold] [all day|on {day}|until noon|for a week], [so {first} stayed at home|but {first} went out|and the roads were empty].",
        "The [wind|rain|fog|snow|sun] [came|comes] from the [north|south|east|west] [this morning|in {season}|before supper].",
        "If it [rains|snows|is dry|is warm] tomorrow, {first} [will {verb}|will cook {food}|will visit {friend}|will stay in {town}].",
    ],
    "house": [
        "The [kitchen|attic|cellar|garden|hall] was [clean|dark|warm|cold|full of dust], and the [door|window|gate|roof] [was open|needed paint|had been mended].",
        "{first} [opened|closed|cleaned|mended|painted] the [door|window|gate|cupboard|fence] and [sat down|made tea|called the {animal}|went upstairs].",
        "[Two|Three|Four] [chairs|boxes|books|plates] [were|lay|stood] on the [table|floor|shelf|steps].",
    ],
    "talk": [
        "{first} [asked|told|reminded] {friend} [about the market on {day}|about the {animal}|to bring {food}|to come to {town}].",
        "{first} and {friend} [talked|laughed|argued] about [{hobby}|the {weather} weather|the price of {goods}|old times] [for an hour|until midnight|over a cup of tea].",
        "[Then|Later|At last|An hour later] they [ate {food}|walked along {river}|went home|listened to the {instrument}|looked at {sight}].",
    ],
}
