// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {AddressList} from "./AddressList.sol";
import {CodeStore} from "./CodeStore.sol";
import {Governed} from "./Governed.sol";
import {Quorum} from "./Quorum.sol";

/// @title Who may sign, by seat
/// @notice At most 256 seats. A seat keeps its index for ever; its occupant may change. Every change is a
/// new epoch, and every epoch remains readable. MEMBERs train, sign and govern; AUDITORs read.
contract MemberRegistry is EIP712, Governed {
    /// @notice What the occupant of a seat may do. NONE: the seat is empty.
    enum Role {
        NONE,
        MEMBER,
        AUDITOR
    }

    /// @notice The record of one seat.
    /// @param role What the occupant may do.
    /// @param owner Cold account: governs, and rotates the other keys. Never shared by two seats.
    /// @param signer Hot account: signs rounds. Never shared by two seats; an auditor may leave it zero.
    /// @param boxKey X25519 public key.
    /// @param peerId libp2p peer id, multihash bytes, 1 to 64. Never shared by two seats.
    /// @param boxKeySignature Ed25519 signature of boxKey by the libp2p key, 64 bytes (readers verify it).
    struct Member {
        Role role;
        address owner;
        address signer;
        bytes32 boxKey;
        bytes peerId;
        bytes boxKeySignature;
    }

    /// @notice What a round needs to know of an epoch.
    /// @dev Slot 0: signers (20 bytes), size (2), members (2). Slot 1: active.
    /// @param signers Contract whose code lists the signers by seat (CodeStore of an AddressList); zero for
    /// empty seats and auditors.
    /// @param size Number of seats, empty ones included.
    /// @param members Number of MEMBERs: the n of the quorum.
    /// @param active Bitmap of the seats of MEMBERs.
    struct Epoch {
        address signers;
        uint16 size;
        uint16 members;
        uint256 active;
    }

    /// @notice The current state in one look.
    /// @param epoch The current epoch, from 1.
    /// @param electorate The epoch that last changed who the owners are; approvals count within it.
    /// @param size Number of seats, empty ones included.
    /// @param members Number of MEMBERs.
    /// @param quorum floor(2 * members / 3) + 1.
    /// @param successor Where the members moved to; zero while they have not.
    struct Head {
        uint32 epoch;
        uint32 electorate;
        uint16 size;
        uint16 members;
        uint16 quorum;
        address successor;
    }

    /// @dev One slot: the record (CodeStore of an abi-encoded Member; zero for an empty seat) holds from
    /// `epoch` on.
    struct Version {
        uint32 epoch;
        address record;
    }

    /// @notice Most seats that there may ever be: one bit each in a word.
    uint256 public constant MAX_SEATS = 256;
    /// @notice Fewest MEMBERs: the least n that outvotes one liar (f < n / 3).
    uint256 public constant MIN_MEMBERS = 4;
    /// @notice Longest peer id, bytes.
    uint256 public constant MAX_PEER_ID = 64;
    /// @notice Most multiaddresses of one announcement.
    uint256 public constant MAX_ADDRESSES = 8;
    /// @notice Longest multiaddress, bytes of text.
    uint256 public constant MAX_ADDRESS_LENGTH = 256;

    /// @notice EIP-712 type of the new signer's consent to a rotation. `epoch` is the one in which the
    /// seat last changed (`changedAt`), so nobody else's change spoils the signature.
    bytes32 public constant ROTATION_TYPEHASH =
        keccak256("Rotation(uint32 epoch,uint16 index,address signer)");

    // Slot: epoch (4 bytes), electorate (4), successor (20).
    uint32 private _epoch;
    uint32 private _electorateEpoch;
    address private _successor;

    mapping(uint32 epoch => Epoch) private _epochs;
    mapping(uint256 index => Version[]) private _versions;
    mapping(uint256 index => address) private _announcements;

    // Seat + 1 of whoever holds the key; zero when nobody does.
    mapping(address owner => uint256) private _ownerSeat;
    mapping(address signer => uint256) private _signerSeat;
    mapping(bytes32 peerIdHash => uint256) private _peerSeat;

    /// @notice From `epoch` on, seat `index` holds `record`.
    event MembershipChanged(uint32 indexed epoch, uint16 indexed index, Member record);
    /// @notice The occupant of seat `index` listens at these multiaddresses.
    event AddressesAnnounced(uint16 indexed index, string[] addresses);
    /// @notice A quorum named the registry that takes over.
    event SuccessorSet(address indexed successor);

    /// @notice More than MAX_SEATS seats.
    error TooManySeats(uint256 got);
    /// @notice Fewer than MIN_MEMBERs would remain.
    error TooFewMembers(uint256 got, uint256 need);
    /// @notice No seat `index`; a new one is appended at `size`.
    error NoSuchSeat(uint16 index, uint256 size);
    /// @notice Seat `index` is empty.
    error EmptySeat(uint16 index);
    /// @notice A founding seat must have a role.
    error RoleMissing(uint16 index);
    /// @notice The owner is the zero address.
    error OwnerMissing(uint16 index);
    /// @notice A MEMBER's signer is the zero address.
    error SignerMissing(uint16 index);
    /// @notice The box key is zero.
    error BoxKeyMissing(uint16 index);
    /// @notice The peer id is empty or longer than MAX_PEER_ID.
    error MalformedPeerId(uint16 index, uint256 length);
    /// @notice The signature of the box key is not 64 bytes long.
    error MalformedBoxKeySignature(uint16 index, uint256 length);
    /// @notice Another seat has this owner.
    error OwnerTaken(address owner, uint16 index);
    /// @notice Another seat has this signer.
    error SignerTaken(address signer, uint16 index);
    /// @notice Another seat has this peer id.
    error PeerIdTaken(bytes peerId, uint16 index);
    /// @notice The seat already holds exactly this record.
    error NothingChanges(uint16 index);
    /// @notice The successor already is this one.
    error SuccessorUnchanged(address successor);
    /// @notice The sender does not own a MEMBER's seat.
    error NotAMember(address account);
    /// @notice Only the owner of the seat may do this.
    error NotTheOwner(uint16 index, address account, address owner);
    /// @notice Only the seat's announcer may do this: a MEMBER's signer, an AUDITOR's owner.
    error NotTheAnnouncer(uint16 index, address account, address announcer);
    /// @notice The new signer did not sign the Rotation.
    error BadPossession(uint16 index, address signer);
    /// @notice More than MAX_ADDRESSES.
    error TooManyAddresses(uint256 got);
    /// @notice An address is longer than MAX_ADDRESS_LENGTH.
    error AddressTooLong(uint256 position, uint256 length);
    /// @notice There has been no such epoch.
    error NoSuchEpoch(uint32 epoch, uint32 current);

    /// @notice Found the registry with epoch 1.
    /// @param initial The first seats in order, each with a role. EIP-3860 limits the creation code to
    /// 49,152 bytes, room for about 70 seats; more are admitted with changeMember.
    constructor(Member[] memory initial) EIP712("Folkmoot", "1") {
        uint256 size = initial.length;
        if (size > MAX_SEATS) revert TooManySeats(size);
        bytes memory signers = new bytes(20 * size);
        uint16 count = 0;
        uint256 active = 0;
        for (uint16 index = 0; index < size; ++index) {
            Member memory record = initial[index];
            if (record.role == Role.NONE) revert RoleMissing(index);
            _validate(index, record);
            _occupy(1, index, record);
            if (record.role == Role.MEMBER) {
                AddressList.put(signers, index, record.signer);
                active |= 1 << index;
                ++count;
            }
        }
        if (count < MIN_MEMBERS) revert TooFewMembers(count, MIN_MEMBERS);
        _epoch = 1;
        _electorateEpoch = 1;
        _epochs[1] = Epoch(CodeStore.write(signers), uint16(size), count, active);
    }

    /// @notice Fill, change, empty or append a seat: a new epoch and a new electorate. Governed.
    /// @param index The seat; equal to the number of seats to append one.
    /// @param record What it shall hold. Of a record with role NONE only the role counts.
    function changeMember(uint16 index, Member calldata record) external {
        Epoch memory current = _epochs[_epoch];
        if (index > current.size) revert NoSuchSeat(index, current.size);
        if (index >= MAX_SEATS) revert TooManySeats(uint256(index) + 1);
        Member memory before = _latest(index);
        Member memory next = record;
        if (record.role == Role.NONE) {
            if (before.role == Role.NONE) revert EmptySeat(index);
            next = _emptyRecord();
        } else {
            if (keccak256(abi.encode(before)) == keccak256(abi.encode(record))) revert NothingChanges(index);
            _validate(index, next);
        }
        uint256 count = current.members;
        if (before.role == Role.MEMBER) --count;
        if (next.role == Role.MEMBER) ++count;
        if (count < MIN_MEMBERS) revert TooFewMembers(count, MIN_MEMBERS);
        if (!_approve()) return;
        _advance(index, before, next);
        _electorateEpoch = _epoch;
        delete _announcements[index];
    }

    /// @notice Name the registry that takes over from this one. Governed. Nothing here stops working.
    /// @param successor The new registry; zero to withdraw.
    /// @param salt Any value; a different one lets the same electorate decide the same again.
    function setSuccessor(address successor, bytes32 salt) external {
        // It counts as part of msg.data, under which _approve counts.
        // slither-disable-next-line redundant-statements
        salt;
        if (successor == _successor) revert SuccessorUnchanged(successor);
        if (!_approve()) return;
        _successor = successor;
        emit SuccessorSet(successor);
    }

    /// @notice Replace the keys of a seat: a new epoch. Only its owner may; approvals stay valid.
    /// @param index The seat.
    /// @param newSigner The new hot account; the present one to keep it. An auditor may leave it zero.
    /// @param peerId The new libp2p peer id, or the present one.
    /// @param boxKey The new X25519 key, or the present one.
    /// @param boxKeySignature Ed25519 signature of boxKey by the libp2p key.
    /// @param possession EIP-2098 signature of Rotation(changedAt(index), index, newSigner) by newSigner.
    /// Not read when newSigner is zero.
    function rotate(
        uint16 index,
        address newSigner,
        bytes calldata peerId,
        bytes32 boxKey,
        bytes calldata boxKeySignature,
        bytes32[2] calldata possession
    ) external {
        Member memory before = _occupant(index);
        if (msg.sender != before.owner) revert NotTheOwner(index, msg.sender, before.owner);
        Member memory next = Member(before.role, before.owner, newSigner, boxKey, peerId, boxKeySignature);
        if (keccak256(abi.encode(before)) == keccak256(abi.encode(next))) revert NothingChanges(index);
        _validate(index, next);
        if (
            newSigner != address(0)
                && !Quorum.isSigner(digestRotation(changedAt(index), index, newSigner), newSigner, possession)
        ) revert BadPossession(index, newSigner);
        _advance(index, before, next);
    }

    /// @notice Publish where a seat's libp2p host listens. Replaces the last announcement; no new epoch.
    /// A MEMBER's signer announces, an AUDITOR's owner.
    /// @param index The seat.
    /// @param addresses At most 8 multiaddresses of at most 256 bytes each.
    function announce(uint16 index, string[] calldata addresses) external {
        Member memory record = _occupant(index);
        address announcer = record.role == Role.MEMBER ? record.signer : record.owner;
        if (msg.sender != announcer) revert NotTheAnnouncer(index, msg.sender, announcer);
        if (addresses.length > MAX_ADDRESSES) revert TooManyAddresses(addresses.length);
        for (uint256 k = 0; k < addresses.length; ++k) {
            uint256 length = bytes(addresses[k]).length;
            if (length > MAX_ADDRESS_LENGTH) revert AddressTooLong(k, length);
        }
        _announcements[index] = CodeStore.write(abi.encode(addresses));
        emit AddressesAnnounced(index, addresses);
    }

    /// @notice The current epoch, from 1.
    function epoch() external view returns (uint32) {
        return _epoch;
    }

    /// @notice The current state in one look.
    function head() external view returns (Head memory) {
        Epoch storage current = _epochs[_epoch];
        return Head(
            _epoch,
            _electorateEpoch,
            current.size,
            current.members,
            uint16(Quorum.required(current.members)),
            _successor
        );
    }

    /// @notice What a round needs to know of an epoch.
    function epochAt(uint32 number) external view returns (Epoch memory) {
        return _known(number);
    }

    /// @notice Number of seats of an epoch, empty ones included.
    function sizeOf(uint32 number) external view returns (uint16) {
        return _known(number).size;
    }

    /// @notice Quorum of an epoch: floor(2n / 3) + 1 of its n MEMBERs.
    function quorumOf(uint32 number) external view returns (uint16) {
        return uint16(Quorum.required(_known(number).members));
    }

    /// @notice Signers of an epoch by seat; zero for empty seats and auditors.
    function signersOf(uint32 number) external view returns (address[] memory signers) {
        Epoch memory sitting = _known(number);
        bytes memory list = CodeStore.read(sitting.signers);
        signers = new address[](sitting.size);
        for (uint256 index = 0; index < signers.length; ++index) {
            signers[index] = AddressList.entryAt(list, index);
        }
    }

    /// @notice All records of an epoch by seat.
    function members(uint32 number) external view returns (Member[] memory records) {
        records = new Member[](_known(number).size);
        for (uint256 index = 0; index < records.length; ++index) {
            Version[] storage versions = _versions[index];
            uint256 k = versions.length;
            while (versions[k - 1].epoch > number) --k;
            records[index] = _load(versions[k - 1].record);
        }
    }

    /// @notice The current record of a seat.
    function memberAt(uint16 index) external view returns (Member memory) {
        uint256 size = _epochs[_epoch].size;
        if (index >= size) revert NoSuchSeat(index, size);
        return _latest(index);
    }

    /// @notice The epoch in which a seat last changed.
    function changedAt(uint16 index) public view returns (uint32) {
        Version[] storage versions = _versions[index];
        if (versions.length == 0) revert NoSuchSeat(index, _epochs[_epoch].size);
        return versions[versions.length - 1].epoch;
    }

    /// @notice The last announcement of a seat's occupant; empty when there is none.
    function addressesOf(uint16 index) external view returns (string[] memory addresses) {
        address stored = _announcements[index];
        if (stored != address(0)) addresses = abi.decode(CodeStore.read(stored), (string[]));
    }

    /// @notice Where an account stands in governance. Reverts NotAMember when it owns no MEMBER's seat.
    /// @return electorate The epoch that last changed who the owners are.
    /// @return seat The seat that `owner` owns.
    /// @return quorum Approvals that an action needs.
    function standing(address owner) external view returns (uint32 electorate, uint16 seat, uint16 quorum) {
        (seat, quorum) = _standing(owner);
        electorate = _electorateEpoch;
    }

    /// @notice EIP-712 digest that a new signer signs to consent to a rotation.
    function digestRotation(uint32 since, uint16 index, address signer) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(ROTATION_TYPEHASH, since, index, signer)));
    }

    function _electorate() internal view override returns (uint32) {
        return _electorateEpoch;
    }

    function _standing(address owner) internal view override returns (uint16 seat, uint16 quorum) {
        Epoch storage current = _epochs[_epoch];
        uint256 found = _ownerSeat[owner];
        if (found == 0 || current.active & (1 << (found - 1)) == 0) revert NotAMember(owner);
        return (uint16(found - 1), uint16(Quorum.required(current.members)));
    }

    function _validate(uint16 index, Member memory record) private view {
        if (record.owner == address(0)) revert OwnerMissing(index);
        if (record.signer == address(0) && record.role == Role.MEMBER) revert SignerMissing(index);
        if (record.boxKey == 0) revert BoxKeyMissing(index);
        uint256 length = record.peerId.length;
        if (length == 0 || length > MAX_PEER_ID) revert MalformedPeerId(index, length);
        if (record.boxKeySignature.length != 64) {
            revert MalformedBoxKeySignature(index, record.boxKeySignature.length);
        }
        uint256 found = _ownerSeat[record.owner];
        if (_isAnother(found, index)) revert OwnerTaken(record.owner, _seat(found));
        found = _signerSeat[record.signer];
        if (_isAnother(found, index)) revert SignerTaken(record.signer, _seat(found));
        found = _peerSeat[keccak256(record.peerId)];
        if (_isAnother(found, index)) revert PeerIdTaken(record.peerId, _seat(found));
    }

    /// @dev Start a new epoch in which seat `index` holds `next` in place of `before`.
    function _advance(uint16 index, Member memory before, Member memory next) private {
        Epoch memory sitting = _epochs[_epoch];
        uint32 number = _epoch + 1;
        bytes memory signers = CodeStore.read(sitting.signers);
        if (index == sitting.size) {
            signers = bytes.concat(signers, bytes20(0));
            ++sitting.size;
        }
        if (before.role == Role.MEMBER) {
            --sitting.members;
            sitting.active &= ~(1 << index);
        }
        if (next.role == Role.MEMBER) {
            ++sitting.members;
            sitting.active |= 1 << index;
        }
        AddressList.put(signers, index, next.role == Role.MEMBER ? next.signer : address(0));
        sitting.signers = CodeStore.write(signers);
        _epoch = number;
        _epochs[number] = sitting;
        if (before.role != Role.NONE) {
            delete _ownerSeat[before.owner];
            delete _signerSeat[before.signer];
            delete _peerSeat[keccak256(before.peerId)];
        }
        _occupy(number, index, next);
    }

    /// @dev Write a record as the latest version of a seat, and the keys it holds.
    function _occupy(uint32 number, uint16 index, Member memory record) private {
        address stored = address(0);
        if (record.role != Role.NONE) {
            stored = CodeStore.write(abi.encode(record));
            uint256 mark = uint256(index) + 1;
            _ownerSeat[record.owner] = mark;
            if (record.signer != address(0)) _signerSeat[record.signer] = mark;
            _peerSeat[keccak256(record.peerId)] = mark;
        }
        _versions[index].push(Version(number, stored));
        emit MembershipChanged(number, index, record);
    }

    function _known(uint32 number) private view returns (Epoch storage) {
        if (number == 0 || number > _epoch) revert NoSuchEpoch(number, _epoch);
        return _epochs[number];
    }

    /// @dev Latest record of a seat; an empty one for the seat that is yet to be appended.
    function _latest(uint16 index) private view returns (Member memory) {
        Version[] storage versions = _versions[index];
        return versions.length == 0 ? _emptyRecord() : _load(versions[versions.length - 1].record);
    }

    function _occupant(uint16 index) private view returns (Member memory record) {
        uint256 size = _epochs[_epoch].size;
        if (index >= size) revert NoSuchSeat(index, size);
        record = _latest(index);
        if (record.role == Role.NONE) revert EmptySeat(index);
    }

    function _load(address stored) private view returns (Member memory) {
        return stored == address(0) ? _emptyRecord() : abi.decode(CodeStore.read(stored), (Member));
    }

    function _emptyRecord() private pure returns (Member memory) {
        return Member(Role.NONE, address(0), address(0), 0, "", "");
    }

    function _isAnother(uint256 found, uint16 index) private pure returns (bool) {
        return found != 0 && found != uint256(index) + 1;
    }

    function _seat(uint256 found) private pure returns (uint16) {
        return uint16(found - 1);
    }
}
